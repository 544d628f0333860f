"""Watch what attention modules are called with while a model runs.

An observer gets the inputs of every call before anything is computed, and changes nothing of it.
Calibration records calls by it (see `nas_attn.conversion.metric.recorded`):

    class CountTokens:
        tokens = 0

        def on_inputs(self, key, value):
            pass

        def on_attend(self, call):
            self.tokens += call.query.size(0) * call.query.size(1)

    with observed(module, CountTokens()) as observer:
        model(batch)

Shape legend: B batch, T query length, S key length, n heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ObservedQuery:
    """A query, and how it attends to the keys that were observed last.

    Args:
        query: Inputs (B, T, embed_dim).
        key_padding_mask: Bool or float (B, S), as in `Attention.forward`.
        attn_mask: As in `Attention.forward`.
        is_causal: Whether position t attends to positions 0..t alone.
        query_padding_mask: Bool (B, T), true at queries that are padding, where the caller says so.
    """

    query: Tensor
    key_padding_mask: Tensor | None
    attn_mask: Tensor | None
    is_causal: bool
    query_padding_mask: Tensor | None


class AttentionObserver(Protocol):
    """What an attention module calls as it is called itself."""

    def on_inputs(self, key: Tensor, value: Tensor) -> None:
        """Inputs of keys (B, S, kdim) and values (B, S, vdim), before they are projected."""

    def on_attend(self, call: ObservedQuery) -> None:
        """A query, before it attends to the keys of the last inputs."""


class Observable(Protocol):
    """What `observed` sets of a module; every `Attention` has it."""

    observer: AttentionObserver | None
    query_padding_mask: Tensor | None


Observer = TypeVar("Observer", bound=AttentionObserver)


@contextmanager
def observed(module: Observable, observer: Observer) -> Iterator[Observer]:
    """Let an observer watch a module.

    Args:
        module: Attention of any scheme.
        observer: Object that gets its calls.

    Yields:
        The observer.
    """
    before = module.observer
    module.observer = observer
    try:
        yield observer
    finally:
        module.observer = before
        module.query_padding_mask = None
