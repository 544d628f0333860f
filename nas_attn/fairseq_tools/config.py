"""The sections of a study file that say what is trained, on what."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from nas_attn.config_model import ConfigModel, Count, FilePath, Scalar
from nas_attn.literals import Subword

LARGEST_SEED = 2**31 - 1


def _fairseq_folder(path: Path) -> Path:
    if os.pathsep in str(path.absolute()):
        raise ValueError(
            f"holds a {os.pathsep!r}, at which fairseq would cut it; rename the folder"
        )
    return path


DataPath = Annotated[FilePath, AfterValidator(_fairseq_folder)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) != len(values):
        raise ValueError("the same seed stands twice")
    return values


LANGUAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_@-]*")
"""A name of a language, as it stands in names of files and on command lines."""


def _two_or_none(languages: list[str]) -> list[str]:
    if len(languages) not in (0, 2) or len(set(languages)) != len(languages):
        raise ValueError("must be a source and a target, or left out")
    for name in languages:
        if not LANGUAGE.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a language, such as de or zh-CN")
    return languages


Languages = Annotated[list[str], Field(default_factory=list), AfterValidator(_two_or_none)]


class TextConfig(ConfigModel):
    """Text to make the data set from."""

    folder: FilePath
    """Folder with train, valid and test as `SPLIT.LANGUAGE` or `SPLIT.txt`, plain or gzipped."""
    languages: Languages
    """Source and target for translation; left out for language models."""
    vocab_size: Annotated[int, Field(ge=8)] = 8000
    """Number of SentencePiece pieces, shared by both languages."""
    subword: Subword = "bpe"
    """Kind of SentencePiece model."""
    character_coverage: Annotated[float, Field(ge=0.98, le=1)] = 1.0
    """Fraction of all characters that SentencePiece covers, such as 0.9995 for Japanese or Chinese;
    others become `<unk>`."""


class DemoTextConfig(ConfigModel):
    """The generated corpus of the demo (see `nas_attn.fairseq_tools.demo_data`)."""

    seed: Seed = 1
    """Random seed of the sentences."""
    train_sentences: Count = 16000
    """Number of training sentences."""


class DataConfig(ConfigModel):
    """The binarised data set, and where it comes from if it is not there yet."""

    folder: DataPath
    """Folder of the binarised data set that fairseq-train takes; made if it is not there and `text`
    or `demo` is given. Relative to the current folder."""
    languages: Languages
    """Source and target language that are trained; left out if the data set has one pair only, or
    for language models."""
    text: TextConfig | None = None
    """Text files that the data set is made from."""
    demo: DemoTextConfig | None = None
    """Generated text that the data set is made from."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if self.text is not None and self.demo is not None:
            raise ValueError("give text or demo, not both")
        made = [] if self.text is None else self.text.languages
        if self.languages and made and set(self.languages) != set(made):
            raise ValueError(
                f"languages {self.languages} are not those of text.languages, {made}: the text "
                "makes no other data set"
            )
        return self

    @property
    def trained_languages(self) -> tuple[str, ...]:
        """Source and target as far as the study names them."""
        made = [] if self.text is None else self.text.languages
        return tuple(self.languages or made)

    @property
    def origin(self) -> dict[str, Any]:
        """What determines the data set, apart from where the text lies."""
        if self.demo is not None:
            return self.demo.model_dump()
        if self.text is None:
            return {}
        # Data sets of old do not say that they cover all characters.
        covers_all = {"character_coverage"} if self.text.character_coverage == 1 else set()
        return self.text.model_dump(exclude={"folder"} | covers_all)


class TrainingConfig(ConfigModel):
    """A fairseq training, as one would start it by hand."""

    task: Literal["translation", "language_modeling", "masked_lm"] = "translation"
    """fairseq's task."""
    size: str = ""
    """fairseq's name of a model size, such as `iwslt_de_en` of `transformer_iwslt_de_en`; empty for
    the base size."""
    arguments: dict[str, Scalar]
    """Flags of fairseq-train without their dashes; `true` for a flag without a value."""
    seeds: Annotated[
        list[Seed], Field(min_length=1, default_factory=lambda: [1]), AfterValidator(_distinct)
    ]
    """Random seeds: each trial is trained once per seed, and its loss is the mean."""
