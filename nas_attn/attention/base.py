"""The contract of an attention scheme: three maps, attention, an output map.

Shape legend: B batch, T query length, S key length, n heads, g_k key heads, g_v value heads,
h = embed_dim / n head width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, NoReturn, TypedDict

import torch
from torch import Tensor, nn

from nas_attn._deprecated import warn_renamed
from nas_attn.attention.call import AttentionCall, Implementation
from nas_attn.attention.functional import attend_as_called
from nas_attn.attention.masks import merge_masks, with_causal_mask
from nas_attn.attention.observer import AttentionObserver, ObservedQuery
from nas_attn.errors import PlanError


class CommonArguments(TypedDict, total=False):
    """What every scheme takes and passes on to `Attention`."""

    kdim: int | None
    vdim: int | None
    dropout: float
    bias: bool


Masks = tuple[Tensor | None, Tensor | None]
"""`key_padding_mask` and `attn_mask`."""

How = tuple[bool, bool, bool]
"""`need_weights`, `average_attn_weights` and `is_causal`."""


class NoFusedWeights:
    """Stands where torch's Transformer layers look for fused weights, which there are not.

    torch keeps away from its fused kernels wherever an argument overrides its functions.
    """

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError("attention of nas-attn has no fused projection weights")


class FastPathAnswers:
    """What torch's Transformer layers ask of their attention before they call it.

    These answers keep layers and encoders off their fused kernels and nested tensors.
    """

    batch_first = True
    in_proj_weight = NoFusedWeights()
    in_proj_bias = None
    _qkv_same_embed_dim = False


class Attention(FastPathAnswers, nn.Module):
    """Multi-headed attention whose heads may share weights.

    A scheme says how `queries`, `keys` and `values` are made and what `mix_values` does to the
    heads' outputs; everything else is common. What an incremental decoder caches is exactly what
    `keys` and `values` return.

    Called as `torch.nn.MultiheadAttention(batch_first=True)` is, and fit to stand in its place in
    torch's own `TransformerEncoderLayer` and `TransformerDecoderLayer`.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; must divide `embed_dim`.
        kdim: Width of the keys' input, `embed_dim` if left out.
        vdim: Width of the values' input, `embed_dim` if left out.
        dropout: Probability of dropping an attention weight in training.
        bias: Whether projections have biases.
        joined_dim: Width of what `mix_values` returns, heads side by side; `embed_dim` if left out.

    Raises:
        PlanError: `num_heads` does not divide `embed_dim`.
    """

    reference: ClassVar[str]
    """Paper and equation that the scheme follows."""

    implementation: Implementation | None = None
    """How attention is computed; None takes the fastest way for shapes and device."""

    @property
    def form(self) -> Implementation | None:
        """Former name of `implementation`."""
        warn_renamed("attribute", "form", "implementation")
        return self.implementation

    @form.setter
    def form(self, implementation: Implementation | None) -> None:
        warn_renamed("attribute", "form", "implementation")
        self.implementation = implementation

    def __dir__(self) -> list[str]:
        """Without former names: `torch.jit.trace` asks for all that is here."""
        names: list[str] = super().__dir__()  # type: ignore[no-untyped-call]
        return [name for name in names if name != "form"]

    observer: AttentionObserver | None = None
    """Gets the inputs of every call; set by `observer.observed`."""

    query_padding_mask: Tensor | None = None
    """Bool or None, (B, T), true at queries that are padding; whoever calls may set it before, and
    needs to where `wants_query_padding` says so."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        joined_dim: int | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise PlanError(f"{num_heads} heads do not divide a width of {embed_dim}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.dropout = dropout
        self.has_bias = bias
        self.scale = self.head_dim**-0.5
        joined_dim = embed_dim if joined_dim is None else joined_dim
        self.out_proj = Projection(joined_dim, embed_dim, bias=bias)

    @abstractmethod
    def queries(self, query: Tensor) -> Tensor:
        """(B, T, embed_dim) to (B, n, T, key width); one head if `query_shifts` makes n of it."""

    def query_shifts(self) -> Tensor | None:
        """(n, key width), what heads add to one query; None if each has a query of its own."""
        return None

    @abstractmethod
    def keys(self, key: Tensor) -> Tensor:
        """(B, S, kdim) to (B, g_k, S, key width)."""

    @abstractmethod
    def values(self, value: Tensor) -> Tensor:
        """(B, S, vdim) to (B, g_v, S, h); of no width where the keys are the values."""

    def project(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """`keys` of (B, S, kdim) and `values` of (B, S, vdim), which an observer gets to see."""
        if self.observer is not None:
            self.observer.on_inputs(key, value)
        return self.keys(key), self.values(value)

    def observe(
        self,
        query: Tensor,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> None:
        """Show an observer a query (B, T, embed_dim) that is to attend, with its masks."""
        if self.observer is not None:
            self.observer.on_attend(
                ObservedQuery(
                    query=query,
                    key_padding_mask=key_padding_mask,
                    attn_mask=attn_mask,
                    is_causal=is_causal,
                    query_padding_mask=self.query_padding_mask,
                )
            )

    @property
    def wants_query_padding(self) -> bool:
        """Whether somebody wants to know which queries are padding (see `query_padding_mask`)."""
        return self.observer is not None

    def mix_values(self, heads: Tensor) -> Tensor:
        """What the scheme does to the heads' outputs (B, n, T, h) before the output projection."""
        return heads

    @abstractmethod
    def cache_size(self) -> int:
        """Numbers that incremental decoding keeps for each token."""

    @abstractmethod
    def effective_parameters(self) -> int:
        """Dimension of the set of functions that the parameters reach, dropout aside.

        Parameters less those that are dead (the softmax or another bias absorbs them) or redundant
        (a change of one is undone by another): the rank of the outputs' Jacobian.
        """

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from a query (B, T, embed_dim) to what `keys` and `values` returned.

        Masks are those of `forward`.

        Returns:
            Output (B, T, embed_dim) and, if asked for, weights (B, n, T, S).

        Raises:
            ValueError: `attn_mask` has another mask for each head, but the scheme has one map; or
                `implementation` cannot do what is asked.
        """
        self.observe(query, key_padding_mask, attn_mask, is_causal)
        call = self.call_of(key_padding_mask, attn_mask, is_causal, need_weights)
        values = values if values.size(-1) else keys
        return self.joined(*self.attend_heads(query, keys, values, call))

    def call_of(
        self,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
    ) -> AttentionCall:
        """What `attend_heads` is called with for masks of `forward`."""
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.view(-1, self.num_heads, *attn_mask.shape[1:])  # (B, n, T, S)
        return AttentionCall(
            scale=self.scale,
            mask=merge_masks(key_padding_mask, attn_mask),
            is_causal=is_causal,
            dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights,
        )

    def joined(self, heads: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Output (B, T, embed_dim) of heads (B, n, T, h), and the weights of every head."""
        output: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))  # of (B, T, joined width)
        return output, None if weights is None else weights.expand(-1, self.num_heads, -1, -1)

    def attend_heads(
        self, query: Tensor, keys: Tensor, values: Tensor, call: AttentionCall
    ) -> tuple[Tensor, Tensor | None]:
        """What the output projection gets, (B, n, T, h), and, if asked for, weights (B, n, T, S).

        Args:
            query: (B, T, embed_dim).
            keys: What `keys` returned.
            values: What `values` returned; the keys, if that has no width.
            call: Everything else but the shifts of the query.

        Raises:
            ValueError: As `attend`.
        """
        queries, shifts = self.queries(query), self.query_shifts()
        one_map = queries.size(1) == 1 and shifts is None
        if call.mask is not None and call.mask.size(1) > 1 and one_map:
            raise ValueError(
                f"{type(self).__name__} has one attention map for all heads: give attn_mask as "
                "(time, source)"
            )
        call = replace(call, shifts=shifts)
        heads, weights = attend_as_called(queries, keys, values, call, self.implementation)
        return self.mix_values(heads), weights

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from `query` to `key` and `value`; the call of `torch.nn.MultiheadAttention`.

        Args:
            query: (B, T, embed_dim); or (T, embed_dim), and all else without a batch as well; or
                nested, as torch's encoders make it where they see padding.
            key: (B, S, kdim).
            value: (B, S, vdim).
            key_padding_mask: (B, S); bool, true at keys to leave out, or float, -inf there.
            need_weights: Whether to return the weights too. Without them attention is faster.
            attn_mask: (T, S), (B * n, T, S) or (B, n, T, S); bool, true where attention is not
                allowed, or float, added to the scores.
            average_attn_weights: Whether to return the mean over heads instead of the weights of
                every head.
            is_causal: Whether position t attends to 0..t alone, whatever `attn_mask` says of them.

        Returns:
            Output (B, T, embed_dim), and the weights: (B, T, S), (B, n, T, S) without averaging,
            or None if they are not asked for.
        """
        masks = (key_padding_mask, attn_mask)
        how = (need_weights, average_attn_weights, is_causal)
        if query.is_nested:
            return self._forward_nested(query, key, value, masks, how)
        if query.dim() == 2:
            return self._forward_unbatched(query, key, value, masks, how)
        if is_causal and (key_padding_mask is not None or attn_mask is not None):
            attn_mask = with_causal_mask(attn_mask, query, key)
            is_causal = False
        keys, values = self.project(key, value)
        output, weights = self.attend(
            query,
            keys,
            values,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            is_causal=is_causal,
            need_weights=need_weights,
        )
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        return output, weights

    def _forward_unbatched(
        self, query: Tensor, key: Tensor, value: Tensor, masks: Masks, how: How
    ) -> tuple[Tensor, Tensor | None]:
        padding, attn_mask = masks
        one_key = key[None]
        one_value = one_key if value is key else value[None]
        output, weights = self.forward(
            query[None],
            one_key,
            one_value,
            None if padding is None else padding[None],
            how[0],
            attn_mask,
            *how[1:],
        )
        return output[0], None if weights is None else weights[0]

    def _forward_nested(
        self, query: Tensor, key: Tensor, value: Tensor, masks: Masks, how: How
    ) -> tuple[Tensor, Tensor | None]:
        """Self-attention within sequences of their own lengths, as torch's fused kernel does it."""
        if any(mask is not None for mask in masks) or key is not query or value is not query:
            raise NotImplementedError(
                "nested tensors are taken as query, key and value alike, without masks"
            )
        lengths = [len(sequence) for sequence in query.unbind()]
        padded = query.to_padded_tensor(0.0)
        places = torch.arange(padded.size(1), device=padded.device)
        padding = places >= torch.tensor(lengths, device=padded.device)[:, None]
        output, weights = self.forward(padded, padded, padded, padding, how[0], None, *how[1:])
        parts = [row[:length] for row, length in zip(output, lengths, strict=True)]
        return torch.nested.as_nested_tensor(parts, layout=query.layout), weights

    def __prepare_scriptable__(self) -> NoReturn:
        """Called by `torch.jit.script`, which understands neither these classes nor says so."""
        raise NotImplementedError(
            "nas-attn attention does not support TorchScript; use torch.jit.trace, torch.compile "
            "or torch.export"
        )


class Projection(nn.Linear):
    """`torch.nn.Linear`, with results in the memory order of its input.

    fairseq's tensors are (time, batch, width), and attention sees them transposed: projected as
    they lie, they need no copy.
    """

    def reset_parameters(self) -> None:
        """As `torch.nn.Linear`, which warns of weights without inputs."""
        if self.in_features:
            super().reset_parameters()
        elif self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 3 and not input.is_contiguous():
            return super().forward(input.transpose(0, 1)).transpose(0, 1)
        return super().forward(input)


def split_heads(joined: Tensor, num_heads: int) -> Tensor:
    """(B, T, num_heads * width) to (B, num_heads, T, width)."""
    batch, time, width = joined.shape
    return joined.view(batch, time, num_heads, width // num_heads).transpose(1, 2)


def init_projection(projection: nn.Linear, gain: float = 1.0) -> None:
    """Xavier-uniform weights, as fairseq initialises attention; biases are left alone."""
    nn.init.xavier_uniform_(projection.weight, gain=gain)


def init_as_multi_head(projection: nn.Linear, embed_dim: int, *, one_matrix: bool) -> None:
    """Draw a projection of fewer heads as multi-head attention draws its own.

    A head then starts alike whether it is shared or not.

    Args:
        projection: Map from any width to that of one or several heads.
        embed_dim: Width of all heads together.
        one_matrix: Whether inputs are equally wide: fairseq then counts query, key and value as
            one matrix, which makes each smaller by the square root of two.
    """
    inputs = projection.in_features
    gain = ((inputs + projection.out_features) / (inputs + embed_dim)) ** 0.5
    init_projection(projection, gain * (2**-0.5 if one_matrix else 1.0))


def init_output(projection: nn.Linear) -> None:
    """Xavier-uniform weights and a zero bias, as fairseq initialises the output projection."""
    init_projection(projection)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
