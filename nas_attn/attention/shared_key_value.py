"""Shared keys and values: in every head one projection serves as both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

from torch import Tensor

from nas_attn.attention.base import (
    Attention,
    CommonArguments,
    Projection,
    init_as_multi_head,
    init_output,
    split_heads,
)
from nas_attn.attention.effective import product_dimension
from nas_attn.errors import PlanError


@dataclass(frozen=True, kw_only=True)
class SharedKeyValueOptions:
    """Attention with shared keys and values has no options of its own."""


class SharedKeyValueAttention(Attention):
    """Multi-head attention in which the key of a token is also its value.

    Keys and values are made of one tensor by one projection, so only keys are cached: `values`
    returns tensors of width zero.

    Takes the arguments of `Attention`.

    Raises:
        PlanError: `kdim` and `vdim` differ.
    """

    reference = "Xue and Aletras 2023, arXiv 2310.07911 (its shared key-value baseline)"

    def __init__(self, embed_dim: int, num_heads: int, **common: Unpack[CommonArguments]) -> None:
        super().__init__(embed_dim, num_heads, **common)
        if self.kdim != self.vdim:
            raise PlanError(
                f"keys and values are one, but kdim {self.kdim} is not vdim {self.vdim}"
            )
        self.kv_proj = Projection(self.kdim, embed_dim, bias=self.has_bias)
        self.q_proj = Projection(embed_dim, embed_dim, bias=self.has_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for projection in (self.kv_proj, self.q_proj):
            init_as_multi_head(projection, self.embed_dim, one_matrix=self.kdim == self.embed_dim)
        init_output(self.out_proj)

    def queries(self, query: Tensor) -> Tensor:
        return split_heads(self.q_proj(query), self.num_heads)

    def keys(self, key: Tensor) -> Tensor:
        return split_heads(self.kv_proj(key), self.num_heads)

    def values(self, value: Tensor) -> Tensor:
        """(B, S, vdim) to (B, n, S, 0): the keys are the values."""
        return value.new_empty(value.size(0), self.num_heads, value.size(1), 0)

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, **masks: Any
    ) -> tuple[Tensor, Tensor | None]:
        return super().attend(query, keys, keys, **masks)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *masks: Any, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        """As `Attention.forward`.

        Raises:
            ValueError: `value` is another tensor than `key`.
        """
        if value is not key:
            raise ValueError("keys and values are one: pass the same tensor as key and value")
        return super().forward(query, key, value, *masks, **more)

    def cache_size(self) -> int:
        return self.embed_dim

    def effective_parameters(self) -> int:
        """W_KV meets W_Q and W_O, so both share one change of basis; its bias is absorbed."""
        outputs = 2 * self.embed_dim + self.has_bias
        shared = product_dimension(self.kdim, outputs, self.head_dim)
        return self.num_heads * shared + self.embed_dim * self.has_bias
