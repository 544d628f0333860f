"""Attention of ours behind the calls that other models make of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nas_attn.attention import Attention
from nas_attn.attention.base import FastPathAnswers, split_heads
from nas_attn.attention.masks import causal_mask
from nas_attn.conversion.table import CACHES, Layout
from nas_attn.conversion.turned import Turned

WITHOUT_EFFECT = frozenset(
    (
        "cache_position", "num_items_in_batch", "output_hidden_states", "position_ids",
        "return_dict", "use_cache",
    )
)  # fmt: skip
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
    """An attention module called as other libraries call theirs.

    Made by `hidden_states_for`, it is also an instance of the class that it stands for: by that
    transformers knows whose weights to return under `output_attentions`.

    Args:
        attention: Module of any scheme.
        original: The module that it stands for.
        layout: How that is called.
    """

    original: type[nn.Module]

    def __init__(self, attention: Attention, original: nn.Module, layout: Layout) -> None:
        nn.Module.__init__(self)  # and not the original's, which would make its weights
        for name, value in vars(original).items():
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)  # what the model around may ask for
        for name in layout.kept:
            setattr(self, name, getattr(original, name, None))
        self.attention = attention
        self.layout = layout
        self.config: Any = getattr(original, "config", None)
        self.names = argument_names(type(original))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _restored, (self.original,), self.__dict__

    def forward(self, *inputs: Any, **more: Any) -> Any:
        """Attend from the first argument (B, T, width), to itself or what the layout says.

        Arguments have the names and the order that the original gave them. The mask is None or
        (B, 1, T, S); bool, true where attention is allowed, or float, added to the scores. A cache
        is asked for earlier keys and values, and gets those of this call, shared heads once.

        Raises:
            NotImplementedError: something else is passed that could change the result.
        """
        layout, given = self.layout, {**dict(zip(self.names, inputs, strict=False)), **more}
        query: Tensor = given.pop(self.names[0])
        mask, states = given.pop(layout.mask, None), given.pop(layout.states, None)
        bias = given.pop("position_bias", None) if layout.position_bias else None
        found = [given.pop(name, None) for name in CACHES]
        cache = next((one for one in found if one is not None), None)
        with_weights = given.pop("output_attentions", None)
        if with_weights is None:
            with_weights = getattr(self.config, "output_attentions", False) or self._is_recorded()
        causal = given.pop("is_causal", None)
        computed: Attention | Turned = self.attention
        if layout.rotary:
            computed = Turned(self.attention, given.pop("position_embeddings"))
        self._refuse(given, mask)
        before = _length(cache, getattr(self, "layer_idx", None))
        source = query if states is None else states
        keys, values = self._keys_and_values(computed, source, states is not None, cache)
        if bias is None and getattr(self, "has_relative_attention_bias", False):
            places = {"device": query.device, "past_seen_tokens": before}
            compute: Any = self.compute_bias
            bias = compute(query.size(1), keys.size(2), **places)
        causal = self._is_causal(causal, mask, query)
        if causal and keys.size(2) > query.size(1):  # a static cache, empty but for this call
            keys, values = keys[:, :, : query.size(1)], values[:, :, : query.size(1)]
            bias = None if bias is None else bias[..., : query.size(1)]
        output, weights = computed.attend(
            query,
            keys,
            values,
            attn_mask=_joined(mask, bias, causal, query.size(1), keys.size(2)),
            is_causal=causal and bias is None,
            need_weights=bool(with_weights),
        )
        if layout.output_dropout:
            output = getattr(self, layout.output_dropout)(output)
        results = {"output": output, "weights": weights, "position_bias": bias}
        returned = tuple(results[name] for name in layout.returns)
        return returned if len(returned) > 1 else output

    def _is_recorded(self) -> bool:
        """Whether transformers asks for weights by a hook, which only eager attention gives."""
        eager = getattr(self.config, "_attn_implementation", None) == "eager"
        return eager and bool(self._forward_hooks)

    def _refuse(self, given: dict[str, Any], mask: Any) -> None:
        """Refuse what nobody here makes use of."""
        for name, value in given.items():
            if value is not None and name not in WITHOUT_EFFECT and name not in self.layout.ignored:
                raise NotImplementedError(f"converted attention takes no {name}")
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 4):
            raise NotImplementedError(
                "converted attention takes the masks of eager and sdpa attention, (batch, 1, "
                "time, time): load the model with attn_implementation='sdpa'"
            )

    def _keys_and_values(
        self, computed: Attention | Turned, source: Tensor, is_cross: bool, cache: Any
    ) -> tuple[Tensor, Tensor]:
        """Those of this call, and of earlier ones if there is a cache, which is brought up to
        date."""
        if cache is None:
            return computed.project(source, source)
        layer: Any = self.layer_idx
        own, to_encoder = cache, False
        if hasattr(cache, "cross_attention_cache"):
            to_encoder = is_cross
            own = cache.cross_attention_cache if to_encoder else cache.self_attention_cache
        if to_encoder and cache.is_updated.get(layer):
            keys, values = own.layers[layer].keys, own.layers[layer].values
        else:
            keys, values = computed.project(source, source)
            self.key_heads = keys.size(1)
            if values.size(1) != self.key_heads:
                keys, values = _as_one(keys), _as_one(values)
            if not keys.size(-1):  # the cache counts tokens by what it has of them
                keys = keys.new_zeros(*keys.shape[:-1], 1)
            keys, values = own.update(keys, values, layer)
            if to_encoder:
                cache.is_updated[layer] = True
        if not self.attention.cache_size():
            return keys[..., :0], values
        if keys.size(1) != self.key_heads:
            keys = split_heads(keys[:, 0], self.key_heads)
        width = self.attention.head_dim
        if values.size(-1) > width:
            values = split_heads(values[:, 0], values.size(-1) // width)
        return keys, values

    def _is_causal(self, given: bool | None, mask: Tensor | None, query: Tensor) -> bool:
        """Whether later positions are out of sight without a mask that says so, as under sdpa."""
        if mask is not None or query.size(1) == 1:
            return False
        if getattr(self.config, "_attn_implementation", "sdpa") == "eager":
            return False
        return bool(getattr(self, "is_causal", False) if given is None else given)


def _as_one(heads: Tensor) -> Tensor:
    """Heads (B, g, S, w) side by side, (B, 1, S, g w): static caches have room for as many heads of
    keys as of values."""
    return heads.transpose(1, 2).flatten(2)[:, None]


def _length(cache: Any, layer: int | None) -> Any:
    """Number of tokens that a cache holds; a copy, since static caches count on in place."""
    if cache is None:
        return 0
    if not hasattr(cache, "get_seq_length"):
        raise NotImplementedError(
            f"converted attention takes no cache of type {type(cache).__name__}, but those of "
            "transformers 5"
        )
    length = cache.get_seq_length(layer)
    return length.clone() if isinstance(length, Tensor) else length


def _joined(
    mask: Tensor | None, bias: Tensor | None, causal: bool, queries: int, keys: int
) -> Tensor | None:
    """Mask and position bias as `Attention.attend` takes them."""
    forbidden = ~mask if mask is not None and mask.dtype == torch.bool else None
    if bias is None:
        return mask if forbidden is None else forbidden
    if causal:
        forbidden = causal_mask(queries, keys, bias.device)
    if forbidden is not None:
        return bias.masked_fill(forbidden, torch.finfo(bias.dtype).min)
    return bias if mask is None else bias + mask


def without_cache(module: nn.Module, given: Mapping[str, Any], wanted: int) -> dict[str, Any]:
    """Named arguments of a call that has happened, without its cache.

    Args:
        module: Module of the library that was called.
        given: Named arguments.
        wanted: Number of tokens of the call.

    Raises:
        NotImplementedError: The cache held tokens before the call.
    """
    for name in CACHES:
        if _length(given.get(name), getattr(module, "layer_idx", None)) > wanted:
            raise NotImplementedError(
                "the data are run through whole, not token by token: calibrate by calls of the "
                "model, not of its generate"
            )
    return {name: value for name, value in given.items() if name not in CACHES}


def hidden_states_for(original: nn.Module, layout: Layout) -> Callable[[Attention], nn.Module]:
    """What puts an attention module behind the call of another library's."""
    kind = _kind(type(original))
    return lambda attention: kind(attention, original, layout)


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
