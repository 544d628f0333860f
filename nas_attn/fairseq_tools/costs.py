"""What a plan costs: the costs that are known before any training, and which there are."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas_attn.attention import Attention
from nas_attn.attention.counting import build_on_meta, count_cache
from nas_attn.attention.functional import Implementation
from nas_attn.errors import PlanError
from nas_attn.fairseq_tools.models import Sizer, build_model
from nas_attn.measures import KNOWN_COSTS, MEASURED_COSTS
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape

COUNTED_IMPLEMENTATION: Implementation = "explicit"
"""Computes scores and weighted values as plain products of matrices, the same on every machine.

The counter sees nothing of torch's fused kernel on CPUs, and padding where widths are unequal.
"""


def available_costs(task: str) -> tuple[str, ...]:
    """Which of all costs there are for one of fairseq's tasks.

    A masked language model has no decoder and so no cache, and only translation has a source and
    is decoded.
    """
    missing = {
        "translation": (),
        "language_modeling": ("decoding_seconds", "source_cache_bytes"),
        "masked_lm": ("decoding_seconds", "cache_bytes", "source_cache_bytes"),
    }[task]
    return tuple(name for name in KNOWN_COSTS + MEASURED_COSTS if name not in missing)


@dataclass(frozen=True)
class CostModel:
    """Costs of one model for any plan, exactly: those of the rest, and of each attention module.

    Args:
        sizer: Counter of parameters.
        sentence_length: Tokens of the sentence that `flops` is about, on either side.
        key_lengths: Tokens that attention looks at, for each site.
        rest_flops: Operations of the model without attention; None if they are not counted.
        bytes_per_number: Bytes of a number in the cache.
    """

    sizer: Sizer
    sentence_length: int
    key_lengths: Mapping[str, int]
    rest_flops: int | None
    bytes_per_number: int

    @classmethod
    def of(
        cls,
        args: argparse.Namespace,
        dictionaries: Sequence[Any],
        *,
        sentence_length: int = 25,
        bytes_per_number: int = 4,
        with_flops: bool = True,
    ) -> CostModel:
        """Measure the model of parsed fairseq arguments.

        Args:
            args: Parsed fairseq arguments of one of the plugin's architectures.
            dictionaries: Dictionaries of the source and the target; one for language models.
            sentence_length: Tokens of a sentence; as many as the model takes, if they are fewer.
            bytes_per_number: Bytes of a number in the cache; 4 for float32.
            with_flops: Count operations, for which the model is built once with random weights.

        Raises:
            PlanError: the plan in the arguments does not fit the model.
            ValueError: fairseq refuses the arguments.
        """
        sizer = Sizer.of(args, dictionaries)
        if not with_flops:
            return cls(sizer, sentence_length, {}, None, bytes_per_number)
        with torch.random.fork_rng(devices=[]):
            model = build_model(args, dictionaries).eval()
        length = min(sentence_length, _most_tokens(model))
        key_lengths = dict.fromkeys(sizer.shapes, length)
        if getattr(args, "cross_self_attention", False):
            key_lengths["decoder_self"] = 2 * length  # the encoder's output, then its own
        whole = count_forward(model, dictionaries[0].eos(), length)
        unmeasured = cls(sizer, length, key_lengths, 0, bytes_per_number)
        attention = unmeasured.flops(AttentionPlan.parse(args.attention_plan))
        return cls(sizer, length, key_lengths, whole - attention, bytes_per_number)

    @property
    def shapes(self) -> dict[str, SiteShape]:
        """The model's sites."""
        return self.sizer.shapes

    def known(self, plan: AttentionPlan) -> dict[str, int]:
        """All of `KNOWN_COSTS` under a plan, before any pruning, as far as there are any.

        There are no cache_bytes without a decoder, no source_cache_bytes without a source, and no
        flops if they are not counted.

        Raises:
            PlanError: the plan does not fit the model.
        """
        costs = self.sizer.size(plan)._asdict()
        if self.rest_flops is not None:
            costs["flops"] = self.flops(plan)
        if "decoder_self" in self.sizer.shapes:
            costs["cache_bytes"] = self.cache_bytes(plan)
        if "encoder_decoder" in self.sizer.shapes:
            costs["source_cache_bytes"] = self.source_cache_bytes(plan)
        return {name: costs[name] for name in KNOWN_COSTS if name in costs}

    def cache_bytes(self, plan: AttentionPlan) -> int:
        """Bytes of keys and values kept for each generated token, over all layers of the decoder.

        What is kept of the source is not among them (see `source_cache_bytes`).

        Raises:
            PlanError: the model has no decoder.
        """
        if "decoder_self" not in self.sizer.shapes:
            raise PlanError("a model without a decoder generates nothing and keeps no cache")
        return count_cache(plan, self.sizer.shapes) * self.bytes_per_number

    def source_cache_bytes(self, plan: AttentionPlan) -> int:
        """Bytes of keys and values kept for each token of the source, over all layers.

        They are kept once for all hypotheses of a sentence. With `--source-cache output` decoding
        keeps the encoder's output instead.

        Raises:
            PlanError: the model has no source.
        """
        if "encoder_decoder" not in self.sizer.shapes:
            raise PlanError("a model without a source keeps nothing of it")
        kept = count_cache(plan, self.sizer.shapes, "encoder_decoder")
        return kept * self.bytes_per_number

    def flops(self, plan: AttentionPlan) -> int:
        """Floating-point operations of one forward pass: two for each product in matrix products.

        The pass is over one sentence of `sentence_length` tokens, which are all given (a
        translation's target has as many), in evaluation. Attention is computed by
        `COUNTED_IMPLEMENTATION`, the products that a causal mask hides included. It is a property
        of the model, not of a machine: faster implementations may do less. What only the loss
        computes, such as an adaptive softmax, is left out.
        """
        shapes = self.sizer.shapes
        return (self.rest_flops or 0) + sum(
            count_choice_flops(choice, shape, self.sentence_length, self.key_lengths[site])
            for site, shape in shapes.items()
            for choice in plan.layers(site, shape.num_layers)
        )


@lru_cache(maxsize=4096)
def count_choice_flops(choice: AttentionChoice, shape: SiteShape, queries: int, keys: int) -> int:
    """Operations of one attention module, projections included (see `CostModel.flops`).

    Args:
        choice: The module's scheme and options.
        shape: Sizes of its site.
        queries: Tokens that attend.
        keys: Tokens attended to.

    Raises:
        PlanError: the choice does not fit the shape.
    """
    module = build_on_meta(choice, shape).eval()
    module.implementation = COUNTED_IMPLEMENTATION
    query = torch.empty(1, queries, shape.embed_dim, device="meta")
    source = torch.empty(1, keys, shape.kdim or shape.embed_dim, device="meta")
    # Without gradients the softmax asks for autocast, which the meta device does not know.
    with torch.enable_grad():
        return count_flops(lambda: module(query, source, source, need_weights=False))


def count_forward(model: nn.Module, token: int, length: int) -> int:
    """Operations of a forward pass of a fairseq model over one sentence (see `CostModel.flops`).

    Args:
        model: Model in evaluation mode, with weights; its attention is left by
            `COUNTED_IMPLEMENTATION`.
        token: Token that the sentence is made of, in either language; anything but padding.
        length: Tokens of the sentence.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            module.implementation = COUNTED_IMPLEMENTATION
    tokens = torch.full((1, length), token)
    inputs = [tokens]
    if hasattr(model, "encoder") and hasattr(model, "decoder"):
        inputs = [tokens, torch.tensor([length]), tokens]
    with torch.no_grad():
        return count_flops(lambda: model(*inputs))


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products in a piece of work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _most_tokens(model: Any) -> int:
    """Longest sentence that every side of a fairseq model takes."""
    longest = model.max_positions()
    return min(longest) if isinstance(longest, tuple) else int(longest)
