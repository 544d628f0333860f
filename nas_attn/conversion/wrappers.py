"""Attention of ours behind the calls that other models make of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nas_attn.attention import Attention
from nas_attn.attention.base import FastPathAnswers

WITHOUT_EFFECT = frozenset(
    ("num_items_in_batch", "output_hidden_states", "position_ids", "return_dict", "use_cache")
)
"""What Hugging Face's models hand down to attention that makes no use of it."""


class TimeFirst(FastPathAnswers, nn.Module):
    """An attention module called with (time, batch, width), as `batch_first=False` asks."""

    batch_first = False

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *masks: Any, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        """As `Attention.forward`, but for the order of time and batch."""
        if query.dim() == 2:  # without a batch there is no order to change
            return self.attention(query, key, value, *masks, **more)  # type: ignore[no-any-return]
        first = query.transpose(0, 1)
        second = first if key is query else key.transpose(0, 1)
        third = second if value is key else value.transpose(0, 1)
        output, weights = self.attention(first, second, third, *masks, **more)
        return output.transpose(0, 1), weights


class HiddenStates(nn.Module):
    """An attention module called as Hugging Face's encoders call theirs.

    Made by `hidden_states_for`, it is also an instance of the class that it stands for: by that
    transformers knows whose weights to return under `output_attentions`.

    Args:
        attention: Module of any scheme.
        original: The module that it stands for.
    """

    original: type[nn.Module]

    def __init__(self, attention: Attention, original: nn.Module) -> None:
        nn.Module.__init__(self)  # and not the original's, which would make its weights
        self.attention = attention
        self.config: Any = getattr(original, "config", None)
        self.names = argument_names(type(original))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _restored, (self.original,), self.__dict__

    def forward(self, *inputs: Any, **more: Any) -> tuple[Tensor, Tensor | None]:
        """Attend within `hidden_states` (B, T, width).

        Arguments have the names and the order that the original gave them: `attention_mask` is
        None or (B, 1, T, T); bool, true where attention is allowed, or float, added to the scores.

        Raises:
            NotImplementedError: something else is passed that could change the result, such as
                keys and values of earlier calls, or of an encoder.
        """
        given = {**dict(zip(self.names, inputs, strict=False)), **more}
        hidden_states: Tensor = given.pop("hidden_states")
        mask = given.pop("attention_mask", None)
        with_weights = given.pop("output_attentions", None)
        if with_weights is None:
            with_weights = getattr(self.config, "output_attentions", False)
        for name, value in given.items():
            if value is not None and name not in WITHOUT_EFFECT:
                raise NotImplementedError(f"converted attention takes no {name}")
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.dim() != 4:
                raise NotImplementedError(
                    "converted attention takes the masks of eager and sdpa attention, (batch, 1, "
                    "time, time): load the model with attn_implementation='sdpa'"
                )
            mask = ~mask if mask.dtype == torch.bool else mask
        output, weights = self.attention(
            hidden_states,
            hidden_states,
            hidden_states,
            attn_mask=mask,
            need_weights=bool(with_weights),
            average_attn_weights=False,
        )
        return output, weights


def hidden_states_for(original: nn.Module) -> Callable[[Attention], nn.Module]:
    """What puts an attention module behind the call of a Hugging Face module."""
    kind = _kind(type(original))
    return lambda attention: kind(attention, original)


def argument_names(kind: type[nn.Module]) -> tuple[str, ...]:
    """Names that `forward` takes, in order, but for *args and **kwargs."""
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind not in starred)


_KINDS: dict[type[nn.Module], type[HiddenStates]] = {}


def _kind(original: type[nn.Module]) -> type[HiddenStates]:
    """A class that is also the original's; one for each, so that instances are of one class."""
    if original not in _KINDS:
        name = f"Converted{original.__name__}"
        _KINDS[original] = type(name, (HiddenStates, original), {"original": original})
    return _KINDS[original]


def _restored(original: type[nn.Module]) -> HiddenStates:
    """Called by `copy` and `pickle`, which fill in the attributes afterwards."""
    kind = _kind(original)
    return kind.__new__(kind)
