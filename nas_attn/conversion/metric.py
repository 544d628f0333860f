"""What counts in a conversion: the directions that a module's inputs really take.

The weights of a module say nothing about its inputs. Recorded calls do: scores matter by the
second moment of queries and by the covariance of keys within a sequence (what all keys of a
sequence share, the softmax cancels), outputs by the covariance of what attention averages.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nas_attn.attention import Attention
from nas_attn.attention.masks import merge_masks, with_causal_mask
from nas_attn.attention.observer import ObservedQuery, observed

SHRINKAGE = 1e-4
"""Share of the mean variance that is added to every direction."""


@dataclass(frozen=True)
class RecordedCall:
    """One call of an attention module.

    Args:
        query: (B, T, embed_dim).
        key: (B, S, kdim).
        value: (B, S, vdim).
        key_padding_mask: Bool (B, S), true at keys to leave out.
        attn_mask: As in `Attention.forward`.
        is_causal: As in `Attention.forward`.
        query_padding_mask: Bool (B, T), true at queries that do not count.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    key_padding_mask: Tensor | None = None
    attn_mask: Tensor | None = None
    is_causal: bool = False
    query_padding_mask: Tensor | None = None

    @property
    def valid_queries(self) -> Tensor:
        """Bool (B, T)."""
        if self.query_padding_mask is not None:
            return ~self.query_padding_mask
        is_self = self.key_padding_mask is not None and self.query.shape == self.key.shape
        if is_self and torch.equal(self.query.nan_to_num(), self.key.nan_to_num()):
            assert self.key_padding_mask is not None
            return ~self.key_padding_mask.bool()
        return self.query.new_ones(self.query.shape[:2], dtype=torch.bool)

    @property
    def keys_that_count(self) -> Tensor:
        """Bool (B, S)."""
        if self.key_padding_mask is None:
            return self.key.new_ones(self.key.shape[:2], dtype=torch.bool)
        return ~self.key_padding_mask.bool()

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> RecordedCall:
        """The same with inputs of another type, on a device; 0 where they do not count, for padding
        may be no number."""
        moved = {}
        counts = {"query": self.valid_queries, "key": self.keys_that_count}
        for name in ("query", "key", "value"):
            ignored = ~counts.get(name, counts["key"])[..., None]
            moved[name] = getattr(self, name).detach().masked_fill(ignored, 0.0).to(device, dtype)
        if self.value is self.key:
            moved["value"] = moved["key"]
        for name in ("key_padding_mask", "attn_mask", "query_padding_mask"):
            mask = getattr(self, name)
            if mask is not None:
                moved[name] = mask.to(device, dtype if mask.is_floating_point() else None)
        return replace(self, **moved)

    def with_padding(self) -> RecordedCall:
        """The same, and keys that its mask hides from every query are padding.

        transformers passes one mask for all, and padding shall not count.
        """
        mask = self.attn_mask
        if self.key_padding_mask is not None or mask is None or mask.dim() != 4:
            return self
        is_bool = mask.dtype == torch.bool
        hidden = mask if is_bool else mask <= torch.finfo(mask.dtype).min / 2.0
        padding = hidden.all(dim=2).all(dim=1).expand(self.key.size(0), -1)  # (B, S)
        return replace(self, key_padding_mask=padding) if bool(padding.any()) else self

    def is_finite(self) -> bool:
        """Whether all inputs are numbers."""
        return all(bool(t.isfinite().all()) for t in (self.query, self.key, self.value))

    def mask(self) -> Tensor | None:
        """All masks in one (see `merge_masks`)."""
        attn_mask = self.attn_mask
        if self.is_causal:
            attn_mask = with_causal_mask(attn_mask, self.query, self.key)
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.view(self.query.size(0), -1, *attn_mask.shape[1:])  # (B, n, T, S)
        return merge_masks(self.key_padding_mask, attn_mask)


@contextmanager
def recorded(modules: Mapping[str, Attention]) -> Iterator[dict[str, list[RecordedCall]]]:
    """Record the calls of attention modules while a model runs; inputs are kept as they are.

    Args:
        modules: Attention modules, each by a name of its own.

    Yields:
        The calls of each, filled as they come.
    """
    calls: dict[str, list[RecordedCall]] = {name: [] for name in modules}
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(observed(module, _Recorder(calls[name])))
        yield calls


class _Recorder:
    """Observer of a module that keeps its calls."""

    def __init__(self, calls: list[RecordedCall]) -> None:
        self.calls = calls
        self.inputs: tuple[Tensor, Tensor] | None = None

    def on_inputs(self, key: Tensor, value: Tensor) -> None:
        self.inputs = key, value

    def on_attend(self, call: ObservedQuery) -> None:
        assert self.inputs is not None
        key, value = self.inputs
        self.calls.append(
            RecordedCall(
                call.query,
                key,
                value,
                key_padding_mask=call.key_padding_mask,
                attn_mask=call.attn_mask,
                is_causal=call.is_causal,
                query_padding_mask=call.query_padding_mask,
            )
        )


@dataclass(frozen=True)
class InputStatistics:
    """Square roots of moments, and means, in float64.

    Args:
        query: (d + 1, d + 1) lower triangle, of the second moment of queries with a one behind.
        centred_query: (d, d) lower triangle, of their covariance.
        query_mean: (d + 1,), the last is one.
        key: (kdim, kdim) lower triangle, of the covariance of keys within a sequence.
        value: (vdim, vdim) lower triangle, of the covariance of averaged value inputs.
        value_mean: (n, vdim), mean of what each head averages.
    """

    query: Tensor
    centred_query: Tensor
    query_mean: Tensor
    key: Tensor
    value: Tensor
    value_mean: Tensor

    @classmethod
    def of_weights(cls, module: Attention) -> InputStatistics:
        """Every direction counts alike."""

        def eye(width: int) -> Tensor:
            return torch.eye(width, dtype=torch.float64)

        mean = torch.zeros(module.embed_dim + 1, dtype=torch.float64)
        mean[-1] = 1.0
        return cls(
            query=eye(module.embed_dim + 1),
            centred_query=eye(module.embed_dim),
            query_mean=mean,
            key=eye(module.kdim),
            value=eye(module.vdim),
            value_mean=torch.zeros(
                module.embed_dim // module.head_dim, module.vdim, dtype=torch.float64
            ),
        )

    @classmethod
    def of_calls(cls, module: Attention, calls: Iterable[RecordedCall]) -> InputStatistics:
        """What the calls of a module say.

        Raises:
            ValueError: there is no call, or no query or key that counts.
        """
        sums = _Sums(module)
        for call in calls:
            sums.add(call.to(torch.float64))
        if not sums.queries or not sums.keys:
            raise ValueError("a data-aware conversion needs calls with queries and keys that count")
        second = sums.query / sums.queries
        mean = second[-1].clone()
        centred = second[:-1, :-1] - torch.outer(mean[:-1], mean[:-1])
        value_mean = sums.value_mean / sums.queries
        heads = module.num_heads
        spread = sums.value / (sums.queries * heads)
        spread = spread - value_mean.t() @ value_mean / heads
        return cls(
            query=_root(second),
            centred_query=_root(centred),
            query_mean=mean,
            key=_root(sums.key / sums.keys),
            value=_root(spread),
            value_mean=value_mean,
        )


class _Sums:
    """Moments of a module's calls, added up."""

    def __init__(self, module: Attention) -> None:
        self.probe = copy.deepcopy(module).to("cpu", torch.float64).eval()

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        self.query = zeros(module.embed_dim + 1, module.embed_dim + 1)
        self.key = zeros(module.kdim, module.kdim)
        self.value = zeros(module.vdim, module.vdim)
        self.value_mean = zeros(module.embed_dim // module.head_dim, module.vdim)
        self.queries = 0
        self.keys = 0

    def add(self, call: RecordedCall) -> None:
        queries = call.query[call.valid_queries]
        queries = torch.cat([queries, queries.new_ones(len(queries), 1)], dim=1)
        self.query += queries.t() @ queries
        self.queries += len(queries)
        count = call.keys_that_count[..., None].to(call.key)
        lengths = count.sum(1, keepdim=True).clamp_min(1.0)
        centred = (call.key - (call.key * count).sum(1, keepdim=True) / lengths) * count
        centred = centred.flatten(0, 1)  # (B * S, kdim)
        self.key += centred.t() @ centred
        self.keys += int(count.sum())
        with torch.no_grad():
            weights = attention_weights(self.probe, call)
            for head in range(weights.size(1)):
                averages = (weights[:, head] @ call.value)[call.valid_queries]
                self.value += averages.t() @ averages
                self.value_mean[head] += averages.sum(0)


def attention_scores(module: Attention, call: RecordedCall) -> Tensor:
    """Scores (B, n, T, S) before masks and softmax."""
    queries, shifts = module.queries(call.query), module.query_shifts()
    if shifts is not None:
        queries = queries + shifts[:, None]
    keys = module.keys(call.key)
    heads = module.num_heads
    queries, keys = (t.repeat_interleave(heads // t.size(1), dim=1) for t in (queries, keys))
    scores: Tensor = module.scale * queries @ keys.mT
    return scores


def attention_weights(module: Attention, call: RecordedCall) -> Tensor:
    """Weights (B, n, T, S)."""
    scores, mask = attention_scores(module, call), call.mask()
    if mask is None:
        return scores.softmax(-1)
    masked: Tensor = (
        scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    )
    return masked.softmax(-1).nan_to_num(0.0)  # padding that sees nothing at all


def run(module: Attention, call: RecordedCall) -> Tensor:
    """Output (B, T, embed_dim) of a module for a call."""
    output, _ = module(
        call.query,
        call.key,
        call.value,
        key_padding_mask=call.key_padding_mask,
        attn_mask=call.attn_mask,
        is_causal=call.is_causal,
        need_weights=False,
    )
    result: Tensor = output
    return result


def _root(moment: Tensor) -> Tensor:
    """Lower triangle L with L L^T the moment, every direction made to count a little."""
    size = len(moment)
    added = SHRINKAGE * moment.diagonal().mean()
    if added <= torch.finfo(moment.dtype).tiny:  # inputs that never vary: no direction counts more
        added = torch.ones_like(added)
    shrunk = moment + added * torch.eye(size).to(moment)
    root: Tensor = torch.linalg.cholesky(shrunk)
    return root
