"""Grouped-query attention: groups of heads share keys, and groups share values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Unpack

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
class GroupedQueryOptions:
    """Options of grouped-query attention."""

    num_groups: int | None = field(
        default=None,
        metadata={
            "help": "groups of heads that share keys and values; half as many as heads by default"
        },
    )
    num_value_groups: int | None = field(
        default=None,
        metadata={"help": "groups of heads that share values, if not num_groups"},
    )
    tied: bool = field(
        default=False,
        metadata={"help": "one projection for keys and values: the key of a group is its value"},
    )


class GroupedQueryAttention(Attention):
    """Grouped-query attention: n heads of queries, g heads of keys and values.

    Head i attends with its own query to the keys and values of group i // (n / g). With g = n this
    is multi-head attention, with g = 1 multi-query attention. Values may be shared by other groups
    than keys (Chen et al. 2024, arXiv 2406.06567). Tied, the key of a group is also its value, and
    only keys are cached (Zadouri et al. 2025, arXiv 2505.21487, without rotary positions); with
    g = n that is shared_key_value.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number n of heads; must divide `embed_dim`.
        num_groups: Number g of groups; must divide `num_heads`. Half of them by default, one if
            they are odd.
        num_value_groups: Number of groups that share values; must divide `num_heads`. By default
            `num_groups`.
        tied: Whether one projection makes keys and values.
        kdim, vdim, dropout, bias: As in `Attention`.

    Raises:
        PlanError: `num_groups` or `num_value_groups` does not divide `num_heads`; or keys and
            values are tied, but not of the same groups or not of equally wide inputs.
    """

    reference = "Ainslie et al. 2023, arXiv 2305.13245, section 2.2"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_groups: int | None = None,
        num_value_groups: int | None = None,
        tied: bool = False,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(embed_dim, num_heads, **common)
        if num_groups is None:
            num_groups = 1 if num_heads % 2 else num_heads // 2
        if num_value_groups is None:
            num_value_groups = num_groups
        for name, groups in (("num_groups", num_groups), ("num_value_groups", num_value_groups)):
            if groups < 1 or num_heads % groups:
                raise PlanError(f"{name} must divide {num_heads} heads, but is {groups}")
        self.num_groups = num_groups
        self.num_value_groups = num_value_groups
        self.tied = tied
        if tied:
            self._check_tied()
            self.kv_proj = Projection(self.kdim, num_groups * self.head_dim, bias=self.has_bias)
        else:
            value_width = num_value_groups * self.head_dim
            self.k_proj = Projection(self.kdim, num_groups * self.head_dim, bias=self.has_bias)
            self.v_proj = Projection(self.vdim, value_width, bias=self.has_bias)
        self.q_proj = Projection(embed_dim, embed_dim, bias=self.has_bias)
        self.reset_parameters()

    def _check_tied(self) -> None:
        if self.kdim != self.vdim:
            raise PlanError(
                f"keys and values are one, but kdim {self.kdim} is not vdim {self.vdim}"
            )
        if self.num_value_groups != self.num_groups:
            raise PlanError(
                "tied, the key of a group is its value: leave num_value_groups out, which is "
                f"{self.num_value_groups} where num_groups is {self.num_groups}"
            )

    def reset_parameters(self) -> None:
        one_matrix = self.kdim == self.vdim == self.embed_dim
        shared = (self.kv_proj,) if self.tied else (self.k_proj, self.v_proj)
        for projection in (*shared, self.q_proj):
            init_as_multi_head(projection, self.embed_dim, one_matrix=one_matrix)
        init_output(self.out_proj)

    def queries(self, query: Tensor) -> Tensor:
        return split_heads(self.q_proj(query), self.num_heads)

    def keys(self, key: Tensor) -> Tensor:
        projected = self.kv_proj(key) if self.tied else self.k_proj(key)
        return split_heads(projected, self.num_groups)

    def values(self, value: Tensor) -> Tensor:
        """(B, S, vdim) to (B, value groups, S, h); of no width where they are tied to keys."""
        if self.tied:
            return value.new_empty(value.size(0), self.num_groups, value.size(1), 0)
        return split_heads(self.v_proj(value), self.num_value_groups)

    def project(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As `Attention.project`.

        Raises:
            ValueError: keys and values are tied, but `value` is another tensor than `key`.
        """
        if self.tied and value is not key:
            raise ValueError("keys and values are one: pass the same tensor as key and value")
        return super().project(key, value)

    def cache_size(self) -> int:
        groups = self.num_groups if self.tied else self.num_groups + self.num_value_groups
        return groups * self.head_dim

    def effective_parameters(self) -> int:
        """The query bias acts as a row of W_Q; the key bias is dead; b_O absorbs the value bias.

        Tied, W_KV meets W_Q and W_O, so that both share one change of basis.
        """
        size = self.num_heads // self.num_groups
        rows = size * (self.embed_dim + self.has_bias)
        bias = self.embed_dim * self.has_bias
        if self.tied:
            rows += size * self.embed_dim
            return self.num_groups * product_dimension(self.kdim, rows, self.head_dim) + bias
        width = self.num_heads // self.num_value_groups * self.embed_dim
        scores = self.num_groups * product_dimension(rows, self.kdim, self.head_dim)
        outputs = self.num_value_groups * product_dimension(self.vdim, width, self.head_dim)
        return scores + outputs + bias
