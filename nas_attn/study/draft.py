"""A first study file for a user's own data, with a comment at every choice."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from nas_attn.config_model import Scalar
from nas_attn.errors import DataError, UsageError
from nas_attn.fairseq_tools.data import load_prepared
from nas_attn.literals import parse_count
from nas_attn.study.tree import yaml_text

Task = Literal["translation", "language_modeling", "masked_lm"]
FAMILIES = {
    "translation": "transformer",
    "language_modeling": "transformer_lm",
    "masked_lm": "roberta",
}
"""The family of fairseq's architectures for each task."""
SIDES = {
    "translation": ("encoder", "decoder"),
    "language_modeling": ("decoder",),
    "masked_lm": ("encoder",),
}
LAYERS, WIDTH, HEADS = 2, 128, 4
"""Of the model if no size is named: it trains on CPUs in minutes."""
DEEP = 3
"""With more layers the space has fewer choices, since each is measured in each layer."""
NARROW = 256
"""Up to this width a model is trained as small ones are."""

Argument = tuple[str, Scalar, str]
"""Name, value and comment of a flag."""


@dataclass(frozen=True, kw_only=True)
class StudyDraft:
    """What a first study file says.

    Args:
        task: Task of fairseq.
        text: Folder of text files that the data set is made from.
        data: Folder of the data set; with text, where it is made.
        languages: Source and target language.
        arch: fairseq's name of a model size, such as `iwslt_de_en`.
        layers: Layers on each side; 2 if no size is named, and so on for the next two.
        width: Embedding dimension.
        heads: Attention heads.
        epochs: Epochs of a training; by the size of the model if left out.
        vocab_size: SentencePiece pieces of a data set that is made.
        trials: Number of trials, the baseline included.
        budget: The most parameters that a model may have, also as text such as `20M`.
        gpus: GPUs of a trial.
        name: Name of the study; that of the folder of text or data if left out.
    """

    task: Task = "translation"
    text: Path | None = None
    data: Path | None = None
    languages: tuple[str, str] | None = None
    arch: str | None = None
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    epochs: int | None = None
    vocab_size: int = 8000
    trials: int = 12
    budget: str | None = None
    gpus: float = 0
    name: str | None = None

    @property
    def study_name(self) -> str:
        """Name of the study.

        Raises:
            UsageError: there is neither text nor a data set.
        """
        folder = self.text or self.data
        if folder is None:
            raise UsageError("say what to train on: --text FOLDER or --data FOLDER")
        if self.name:
            return self.name
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", folder.absolute().name).lstrip("_.-") or "study"

    def yaml(self) -> str:
        """The study file.

        Raises:
            UsageError: there is neither text nor a data set, or no amount of parameters is one.
        """
        environment = Environment(
            loader=PackageLoader("nas_attn", "study"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,
        )
        environment.filters |= {"json": _json, "yaml": _yaml}
        budget = None if self.budget is None else parse_count(self.budget, "--budget")
        return environment.get_template("draft.yaml").render(
            name=self.study_name,
            description=f"Which attention in which layer, for {self.study_name}.",
            task=self.task,
            text=self.text,
            data=self.data or Path("data-bin") / self.study_name,
            languages=self.languages,
            arch=self.arch,
            family=FAMILIES[self.task],
            arguments=[*self._model(), *self._training()],
            space="inherited_per_layer" if self._is_shallow else "inherited_per_layer_few",
            metric="nll_loss" if self.task == "translation" else "loss",
            budget=budget,
            trials=self.trials,
            gpus=self.gpus,
            vocab_size=self.vocab_size,
        )

    @property
    def _is_shallow(self) -> bool:
        return self.arch is None and (self.layers or LAYERS) <= DEEP

    @property
    def _is_small(self) -> bool:
        return self.arch is None and (self.width or WIDTH) <= NARROW

    @property
    def _shares_vocabulary(self) -> bool:
        """Whether both languages have one dictionary, as data sets made of text have."""
        if self.text is not None or self.data is None:
            return self.text is not None
        try:
            pair = load_prepared(self.data, self.languages or ()).languages
            source, target = ((self.data / f"dict.{name}.txt").read_bytes() for name in pair)
        except (DataError, OSError, ValueError):
            return False  # the study is refused with the reason
        return source == target

    def _model(self) -> list[Argument]:
        """Flags of the model's size, as far as a named size does not say it."""
        named = self.arch is not None
        width = self.width if named else self.width or WIDTH
        sizes = {
            "layers": self.layers if named else self.layers or LAYERS,
            "embed-dim": width,
            "ffn-embed-dim": None if width is None else 4 * width,
            "attention-heads": self.heads if named else self.heads or HEADS,
        }
        found: list[Argument] = [
            (f"{side}-{name}", value, "")
            for side in SIDES[self.task]
            for name, value in sizes.items()
            if value is not None
        ]
        if self.task == "translation" and self._shares_vocabulary:
            found.append(("share-all-embeddings", True, "both languages share a vocabulary"))
        if self.task == "language_modeling":
            found.append(("share-decoder-input-output-embed", True, ""))
        return found

    def _training(self) -> list[Argument]:
        small = self._is_small
        criteria: dict[Task, list[Argument]] = {
            "translation": [
                ("criterion", "label_smoothed_cross_entropy", ""),
                ("label-smoothing", 0.1, ""),
            ],
            "language_modeling": [("criterion", "cross_entropy", "")],
            "masked_lm": [("criterion", "masked_lm", "")],
        }
        of_text: list[Argument] = [
            ("tokens-per-sample", 128 if small else 512, "tokens of a sequence")
        ]
        return [
            *criteria[self.task],
            *(of_text if self.task != "translation" else []),
            ("dropout", 0.1 if small else 0.3, "more for little data"),
            ("optimizer", "adam", ""),
            ("adam-betas", "(0.9, 0.98)", ""),
            ("clip-norm", 1.0, ""),
            ("lr", 0.002 if small else 0.0005, ""),
            ("lr-scheduler", "inverse_sqrt", ""),
            ("warmup-updates", 400 if small else 4000, "with few updates in all, take fewer"),
            ("max-tokens", 4096, "tokens of a batch"),
            ("max-epoch", self.epochs or (4 if small else 30), "length of a training"),
            ("num-workers", 0, ""),
        ]


def _json(value: object) -> str:
    """A value as YAML takes it in a list, too."""
    return json.dumps(value, ensure_ascii=False)


def _yaml(value: object) -> str:
    """A value as YAML takes it behind a key."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return yaml_text(str(value) if isinstance(value, Path) else value)
