"""Whether an exported model writes the same as the one that it was made of."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_attn.errors import NasAttnError, UsageError
from nas_attn.fairseq_tools.convert import BATCH_TOKENS
from nas_attn.fairseq_tools.trained import Batches, TrainedModel, load_batches, task_config

SENTENCES = 50

Tokens = list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Check:
    """How many validation sentences an exported model writes as the original does.

    Args:
        same: Sentences with the same tokens.
        count: Sentences that were compared.
        what: What was compared, in words.
    """

    same: int
    count: int
    what: str

    def __str__(self) -> str:
        return f"{self.same} of {self.count} {self.what}"


class Probe:
    """Sentences of a validation split, and what fairseq's model writes on them.

    Of translation models it is the best hypothesis of a beam of 5; of language models the most
    likely token at each place of a block.

    Args:
        trained: Model that is exported.
        data: Binarised data set.
        count: Most sentences.

    Raises:
        UsageError: The data set has no validation split, or does not fit the model.
    """

    beam, most_tokens = 5, 200
    """Hypotheses of a sentence, and the longest translation: those of fairseq-generate."""

    def __init__(self, trained: TrainedModel, data: Path, count: int = SENTENCES) -> None:
        from fairseq import tasks

        batches = self._batches(trained, data)
        lines = sorted(int(line) for batch in batches.lines for line in batch)[:count]
        self.task = tasks.setup_task(task_config(trained, data))
        self.translates = hasattr(trained.model, "encoder") and hasattr(trained.model, "decoder")
        self._batch: Any = batches.dataset.collater([batches.dataset[line] for line in lines])
        self.count = len(lines)
        self.expected = self.tokens_of(trained.model)

    @property
    def what(self) -> str:
        """What `compare` counts, in words."""
        if self.translates:
            return "sentences: same tokens"
        return "blocks: same most likely tokens"

    def compare(self, tokens: Tokens) -> Check:
        """Compare what another form of the model wrote.

        Raises:
            NasAttnError: Some sentence differs; quotes the first.
        """
        pairs = list(zip(self.expected, tokens, strict=True))
        other = [(wanted, found) for wanted, found in pairs if wanted != found]
        check = Check(same=len(pairs) - len(other), count=len(pairs), what=self.what)
        if other:
            wanted, found = (" ".join(text)[:300] for text in other[0])
            raise NasAttnError(
                f"the export does not write what the model does, so it is deleted: {check}; the "
                f"first that differs is {found!r} in place of {wanted!r}"
            )
        return check

    @property
    def sources(self) -> Tokens:
        """Input of each sentence, as a converter's model takes it: pieces, without padding."""
        dictionary = self.task.source_dictionary
        kept = (dictionary.pad(), *((dictionary.eos(),) if self.translates else ()))
        rows = self._batch["net_input"]["src_tokens"].tolist()
        return [[dictionary[token] for token in row if token not in kept] for row in rows]

    @torch.no_grad()
    def tokens_of(self, model: nn.Module) -> Tokens:
        """What a model of fairseq writes on each sentence."""
        dictionary = self.task.target_dictionary
        if self.translates:
            how = Namespace(beam=self.beam, max_len_b=self.most_tokens)
            generator = self.task.build_generator([model], how)
            found = self.task.inference_step(generator, [model], self._batch)
            rows = [hypotheses[0]["tokens"].tolist()[:-1] for hypotheses in found]
        else:
            best = model(**self._batch["net_input"])[0].argmax(-1)
            seen = self._batch["net_input"]["src_tokens"] != dictionary.pad()
            rows = [row[mask].tolist() for row, mask in zip(best, seen, strict=True)]
        return [[dictionary[token] for token in row] for row in rows]

    def as_pieces(self, best: Sequence[Sequence[int]]) -> Tokens:
        """Numbers in the target dictionary as its pieces."""
        return [[self.task.target_dictionary[token] for token in row] for row in best]

    @staticmethod
    def _batches(trained: TrainedModel, data: Path) -> Batches:
        try:
            return load_batches(trained, data, "valid", BATCH_TOKENS)
        except UsageError as error:
            raise UsageError(
                f"an export is checked on the validation split, which cannot be read: {error}"
            ) from None
