"""What schemes share that make keys and values of one tensor and keep one cache for both."""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor

from nas_attn.attention.base import Attention, CommonArguments
from nas_attn.errors import PlanError


class OneInputAttention(Attention):
    """Attention to what `keys` returns, which serves for keys and for values.

    `values` returns tensors of width zero, so that the cache holds everything once.

    Takes the arguments of `Attention`.

    Raises:
        PlanError: `kdim` and `vdim` differ.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        joined_dim: int | None = None,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(embed_dim, num_heads, joined_dim=joined_dim, **common)
        if self.kdim != self.vdim:
            raise PlanError(
                f"keys and values are one, but kdim {self.kdim} is not vdim {self.vdim}"
            )

    def values(self, value: Tensor) -> Tensor:
        """(B, S, vdim) to (B, 1, S, 0): what is kept as keys serves as values."""
        return value.new_empty(value.size(0), 1, value.size(1), 0)

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
