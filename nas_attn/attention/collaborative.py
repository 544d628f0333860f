"""Collaborative attention: heads share one query and one key projection and mix their columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from nas_attn.attention.base import (
    CommonArguments,
    Projection,
    init_as_multi_head,
    init_output,
    init_projection,
    split_heads,
)
from nas_attn.attention.effective import mixed_product_dimension, product_dimension
from nas_attn.attention.pruning import BUFFERS, PrunableAttention
from nas_attn.errors import PlanError
from nas_attn.pruned import PRUNING

MixingInit = Literal["xavier", "heads"]


@dataclass(frozen=True, kw_only=True)
class CollaborativeOptions:
    """Options of collaborative attention."""

    shared_dim: int | None = field(
        default=None,
        metadata={"help": "width of the shared query/key space; a quarter of the width by default"},
    )
    content_bias: bool = field(
        default=False,
        metadata={"help": "add a bias per head and key token; the shared projections lose theirs"},
    )
    mixing_init: MixingInit = field(
        default="xavier",
        metadata={"help": "mixing vectors at the start: xavier, or heads (each its own columns)"},
    )
    num_value_heads: int | None = field(
        default=None,
        metadata={"help": "value heads, each shared by a group of heads; one a head by default"},
    )
    dim_threshold: float = field(
        default=0.0,
        metadata={
            "help": "prune shared dimensions that weigh less than this share of the heaviest, at "
            "the time of a grouped criterion's vote; 0 (default) prunes none"
        },
    )


class CollaborativeAttention(PrunableAttention):
    """Collaborative attention with a shared query/key space of width D.

    Scores of head i are (m_i * (x W_Q + b_Q)) (y W_K + b_K)^T / sqrt(embed_dim / num_heads), with a
    mixing vector m_i of width D. Values and output projection are those of multi-head attention. At
    D = embed_dim and `mixing_init="heads"` it computes what multi-head attention computes.

    With fewer value heads (ours, not the paper's) groups of heads share a value projection, as in
    grouped-query attention, and the cache shrinks from D + embed_dim to D + num_value_heads * h.

    The mixing acts on the query, so one shared key a token is cached. With a content bias the
    scores gain y v_i under the same scale: keys are widened by y V^T (n numbers) and the query of
    head i by the i-th unit vector, which keeps the fused kernels usable. The scale stays that of
    multi-head attention whatever D is, as in the authors' translation code.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; must divide `embed_dim`.
        shared_dim: Width D of the shared space; `embed_dim // 4` by default, the compression for
            which the paper reports unchanged BLEU.
        content_bias: Whether to learn a vector v_i of width `kdim` a head (the paper's content
            term) in place of the biases b_Q and b_K.
        mixing_init: `xavier` draws the mixing matrix (authors' translation code); `heads` sets
            row i to one on the i-th of `num_heads` equal blocks and to zero elsewhere.
        num_value_heads: Number of value heads; must divide `num_heads`, which is the default.
        dim_threshold: Share below which shared dimensions are pruned (ours, not the paper's): of
            the largest product of the lengths of a dimension's query row, key row and mixing
            column, which is how much its term in the scores weighs.
        kdim, vdim, dropout, bias: As in `Attention`.

    Raises:
        PlanError: `shared_dim` is not positive, `mixing_init` is unknown or does not divide it, or
            `num_value_heads` does not divide `num_heads`, or `dim_threshold` is not in [0, 1].
    """

    reference = "Cordonnier, Loukas and Jaggi 2020, arXiv 2006.16362, section 3"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        shared_dim: int | None = None,
        content_bias: bool = False,
        mixing_init: MixingInit = "xavier",
        num_value_heads: int | None = None,
        dim_threshold: float = 0.0,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(embed_dim, num_heads, **common)
        if shared_dim is None:
            shared_dim = max(1, embed_dim // 4)
        if shared_dim < 1:
            raise PlanError(f"shared_dim must be at least 1, but is {shared_dim}")
        if mixing_init not in ("xavier", "heads"):
            raise PlanError(f"mixing_init must be xavier or heads, but is {mixing_init!r}")
        if mixing_init == "heads" and shared_dim % num_heads:
            raise PlanError(
                f"mixing_init heads needs a shared_dim that {num_heads} heads divide, "
                f"but it is {shared_dim}"
            )
        if num_value_heads is None:
            num_value_heads = num_heads
        if num_value_heads < 1 or num_heads % num_value_heads:
            raise PlanError(
                f"num_value_heads must divide {num_heads} heads, but is {num_value_heads}"
            )
        if not 0.0 <= dim_threshold <= 1.0:
            raise PlanError(f"dim_threshold must be between 0 and 1, but is {dim_threshold}")
        self.shared_dim = shared_dim
        self.dim_threshold = dim_threshold
        self.num_value_heads = num_value_heads
        self.mixing_init = mixing_init
        self.k_proj = Projection(self.kdim, shared_dim, bias=self.has_bias and not content_bias)
        self.v_proj = Projection(self.vdim, num_value_heads * self.head_dim, bias=self.has_bias)
        self.q_proj = Projection(embed_dim, shared_dim, bias=self.has_bias and not content_bias)
        self.mixing = nn.Parameter(torch.empty(num_heads, shared_dim))
        self.content_bias = Projection(self.kdim, num_heads, bias=False) if content_bias else None
        if self.is_prunable:
            self.add_mask(shared_dim)
        self.reset_parameters()

    pruning = PRUNING["collaborative"]

    @property
    def is_prunable(self) -> bool:
        return self.prunes({"dim_threshold": self.dim_threshold})

    def choose(self, seed: int) -> Tensor:
        """Shared dimensions that weigh enough; the lengths are free of how factors are scaled."""
        query, key = self.q_proj.weight, self.k_proj.weight
        if self.q_proj.bias is not None:
            query = torch.cat([query, self.q_proj.bias[:, None]], dim=1)
        lengths = (query.norm(dim=1), key.norm(dim=1), self.mixing.norm(dim=0))
        weights = torch.stack([length.detach().double() for length in lengths]).prod(dim=0)
        return (weights >= self.dim_threshold * weights.max()).long()

    @classmethod
    def cut(
        cls, state: Mapping[str, Tensor], options: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        stay = state["kept"].nonzero().squeeze(1)
        small = {name: tensor for name, tensor in state.items() if name not in BUFFERS}
        for name in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"):
            if name in state:
                small[name] = state[name][stay]
        small["mixing"] = state["mixing"][:, stay]
        return small, {**_unpruned(options), "shared_dim": stay.numel()}

    @classmethod
    def expected(cls, options: Mapping[str, Any], num_heads: int) -> dict[str, Any] | None:
        return None if cls.prunes(options) else dict(options)

    @classmethod
    def least(cls, options: Mapping[str, Any], num_heads: int) -> dict[str, Any]:
        """The heaviest dimension alone, which always stays."""
        if not cls.prunes(options):
            return dict(options)
        return {**_unpruned(options), "shared_dim": 1}

    def reset_parameters(self) -> None:
        full_width = self.shared_dim == self.embed_dim == self.kdim
        init_projection(self.k_proj, 2**-0.5 if full_width else 1.0)
        init_as_multi_head(self.v_proj, self.embed_dim, one_matrix=self.vdim == self.embed_dim)
        init_projection(self.q_proj, 2**-0.5 if full_width else 1.0)
        if self.mixing_init == "xavier":
            nn.init.xavier_uniform_(self.mixing)
        else:
            with torch.no_grad():
                block = self.shared_dim // self.num_heads
                eye = torch.eye(self.num_heads, device=self.mixing.device)
                self.mixing.copy_(eye.repeat_interleave(block, dim=1))
        if self.content_bias is not None:
            nn.init.zeros_(self.content_bias.weight)
        init_output(self.out_proj)

    def queries(self, query: Tensor) -> Tensor:
        mixing = self.mixing * self.kept.to(self.mixing.dtype) if self.is_masked else self.mixing
        mixed: Tensor = self.q_proj(query)[:, None] * mixing[:, None]  # (B, n, T, D)
        if self.content_bias is None:
            return mixed
        unit = torch.eye(self.num_heads, dtype=mixed.dtype, device=mixed.device)[:, None]
        # (B, n, T, D + n)
        return torch.cat([mixed, unit.expand(*mixed.shape[:-1], self.num_heads)], dim=-1)

    def keys(self, key: Tensor) -> Tensor:
        shared: Tensor = self.k_proj(key)
        if self.content_bias is not None:
            shared = torch.cat([shared, self.content_bias(key)], dim=-1)  # (B, S, D + n)
        return shared[:, None]

    def values(self, value: Tensor) -> Tensor:
        return split_heads(self.v_proj(value), self.num_value_heads)

    def cache_size(self) -> int:
        biases = 0 if self.content_bias is None else self.num_heads
        return self.shared_dim + biases + self.num_value_heads * self.head_dim

    def effective_parameters(self) -> int:
        """D rank-one score terms with two scalings each, the content biases, grouped values."""
        content = self.content_bias is not None
        rows = self.embed_dim + (self.has_bias and not content)
        scores = mixed_product_dimension(rows, self.kdim, self.num_heads, self.shared_dim)
        biases = self.num_heads * self.kdim if content else 0
        width = self.num_heads // self.num_value_heads * self.embed_dim
        outputs = self.num_value_heads * product_dimension(self.vdim, width, self.head_dim)
        return scores + biases + outputs + self.embed_dim * self.has_bias


def _unpruned(options: Mapping[str, Any]) -> dict[str, Any]:
    """What was pruned is not voted on again, and blocks of equal width there are no more."""
    return {k: v for k, v in options.items() if k not in ("dim_threshold", "mixing_init")}
