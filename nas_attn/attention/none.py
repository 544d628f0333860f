"""No attention: a layer keeps what the residual path has, and may add a constant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Unpack

from torch import Tensor

from nas_attn.attention.base import Attention, CommonArguments, Projection


@dataclass(frozen=True, kw_only=True)
class NoAttentionOptions:
    """Options of a layer without attention."""

    output_bias: bool = field(
        default=False, metadata={"help": "add a learned vector, the same for every token"}
    )


class NoAttention(Attention):
    """No attention: every output is zero, or one learned vector with `output_bias`.

    Its heads have no width, so nothing is compared, averaged or cached, and a layer passes on what
    its residual path has. Weights, where somebody asks for them, are uniform over the keys that a
    query may attend to, as the softmax of no scores is; no output depends on them. From trained
    heads `output_bias` takes the mean of their outputs on data, or without data their output bias.

    In every layer between decoder and encoder at once it is refused: the decoder would not see the
    source. Architectures of translation named after it keep multi-head attention there.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number n of heads that weights are returned for; must divide `embed_dim`.
        output_bias: Whether to add a learned vector, whatever `bias` says of projections.
        kdim, vdim, dropout, bias: As in `Attention`.
    """

    reference = "Bercovich et al. 2024, arXiv 2411.19146 (their subblock without attention)"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        output_bias: bool = False,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(embed_dim, num_heads, joined_dim=0, **common)
        self.out_proj = Projection(0, embed_dim, bias=output_bias)

    def queries(self, query: Tensor) -> Tensor:
        """(B, T, embed_dim) to (B, n, T, 0)."""
        return query.new_empty(query.size(0), self.num_heads, query.size(1), 0)

    def keys(self, key: Tensor) -> Tensor:
        """(B, S, kdim) to (B, 1, S, 0)."""
        return key.new_empty(key.size(0), 1, key.size(1), 0)

    def values(self, value: Tensor) -> Tensor:
        """(B, S, vdim) to (B, 1, S, 0)."""
        return self.keys(value)

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        need_weights: bool = False,
        **masks: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if need_weights:
            return super().attend(query, keys, values, need_weights=True, **masks)
        self.observe(query, **masks)
        return self.out_proj(query.new_empty(*query.shape[:2], 0)), None

    def cache_size(self) -> int:
        return 0

    def effective_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
