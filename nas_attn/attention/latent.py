"""Latent attention: the keys and values of all heads come from one narrow latent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_attn.attention.base import (
    Attention,
    CommonArguments,
    Projection,
    init_output,
    init_projection,
    split_heads,
)
from nas_attn.attention.call import AttentionCall, lengths_are_open
from nas_attn.attention.effective import product_dimension
from nas_attn.attention.functional import attend_as_called
from nas_attn.attention.masks import rows_without_keys
from nas_attn.errors import PlanError

WORTH = 2
"""Times that there must be less products for `absorbed` to be faster: they are smaller ones.
Measured on a CPU at width 512 with 8 heads, by benchmarks/latent.py."""


@dataclass(frozen=True, kw_only=True)
class LatentOptions:
    """Options of latent attention."""

    latent_dim: int | None = field(
        default=None,
        metadata={
            "help": "width of the latent that keys and values are made of; half of the width by "
            "default"
        },
    )


class LatentProjection(nn.Module):
    """A map without a bias that keeps the weights it started with where `nn.Linear` is redrawn.

    fairseq's masked language models draw every `nn.Linear` anew and small, and keys and values by
    way of two such maps would be next to nothing.
    """

    bias = None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_contiguous():  # as Projection
            return F.linear(input.transpose(0, 1), self.weight).transpose(0, 1)
        return F.linear(input, self.weight)


class LatentAttention(Attention):
    """Multi-head attention whose keys and values are made of one latent of width r.

    A token y becomes c = y W_C, of which head i makes its key c U_i + b_i and its value. Only the
    latent is cached: r numbers a token. W_C has no bias, for those of keys and values do all that
    it could. At r = `kdim` this is multi-head attention.

    The score q_i (c U_i)^T is (q_i U_i^T) c^T: queries and outputs can take the maps from latents
    to keys and values over, and heads then attend to one head of latents (`absorbed`). That is less
    work for few queries, as in decoding; for whole sequences all keys and values are made. The
    shapes decide. Where gradients are recorded or weights dropped, keys and values are made.

    There are no rotary positions, so no part of a key has to stay beside the latent.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number n of heads; must divide `embed_dim`.
        latent_dim: Width r of the latent; half of `embed_dim` by default.
        kdim, vdim, dropout, bias: As in `Attention`.

    Raises:
        PlanError: `latent_dim` is not positive, or `kdim` and `vdim` differ.
    """

    reference = "DeepSeek-AI 2024, arXiv 2405.04434, section 2.1.2"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        latent_dim: int | None = None,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(embed_dim, num_heads, **common)
        if self.kdim != self.vdim:
            raise PlanError(
                f"keys and values are made of one latent, but kdim {self.kdim} is not vdim "
                f"{self.vdim}"
            )
        if latent_dim is None:
            latent_dim = max(1, embed_dim // 2)
        if latent_dim < 1:
            raise PlanError(f"latent_dim must be at least 1, but is {latent_dim}")
        self.latent_dim = latent_dim
        self.c_proj = LatentProjection(self.kdim, latent_dim)
        self.k_proj = Projection(latent_dim, embed_dim, bias=self.has_bias)
        self.v_proj = Projection(latent_dim, embed_dim, bias=self.has_bias)
        self.q_proj = Projection(embed_dim, embed_dim, bias=self.has_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw latents as wide as their inputs, and keys and values as wide as multi-head's."""
        width, inputs, latent = self.embed_dim, self.kdim, self.latent_dim
        share = 0.5 if inputs == width else 1.0  # see init_as_multi_head
        gain = ((inputs + latent) / (2 * inputs)) ** 0.5
        nn.init.xavier_uniform_(self.c_proj.weight, gain)
        gain = (share * inputs * (latent + width) / (latent * (inputs + width))) ** 0.5
        init_projection(self.k_proj, gain)
        init_projection(self.v_proj, gain)
        init_projection(self.q_proj, share**0.5)
        init_output(self.out_proj)

    def queries(self, query: Tensor) -> Tensor:
        """(B, T, embed_dim) to (B, n, T, r), compared with latents."""
        return torch.einsum("bnth,nhr->bntr", self._own_queries(query), self._maps(self.k_proj))

    def keys(self, key: Tensor) -> Tensor:
        """(B, S, kdim) to latents (B, 1, S, r)."""
        latents: Tensor = self.c_proj(key)
        return latents[:, None]

    def values(self, value: Tensor) -> Tensor:
        """(B, S, vdim) to (B, 1, S, 0): they are made of the latents, too."""
        return value.new_empty(value.size(0), 1, value.size(1), 0)

    def project(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As `Attention.project`.

        Raises:
            ValueError: `value` is another tensor than `key`.
        """
        if value is not key:
            raise ValueError(
                "keys and values are made of one latent: pass the same tensor as key and value"
            )
        return super().project(key, value)

    def mix_values(self, heads: Tensor) -> Tensor:
        """Values (B, n, T, h) of averaged latents (B, n, T, r)."""
        values = torch.einsum("bntr,nhr->bnth", heads, self._maps(self.v_proj))
        if self.v_proj.bias is None:
            return values
        return values + self.v_proj.bias.view(self.num_heads, 1, self.head_dim)

    def attend_heads(
        self, query: Tensor, keys: Tensor, values: Tensor, call: AttentionCall
    ) -> tuple[Tensor, Tensor | None]:
        if not self._absorbs(query.size(1), keys.size(2), call):
            own = (self._own_queries(query), *self._made(keys[:, 0]))
            return attend_as_called(*own, call, self.implementation)
        averages, weights = attend_as_called(self.queries(query), keys, values, call)
        heads = self.mix_values(averages)
        if call.mask is not None and self.has_bias:  # who attends to nothing gets no bias either
            heads = heads.masked_fill(rows_without_keys(call.mask), 0.0)
        return heads, weights

    def cache_size(self) -> int:
        return self.latent_dim

    def effective_parameters(self) -> int:
        """Heads have maps of latents in common, which one change of basis undoes.

        Latents wider than their input, or than all keys and values, are no limit.
        """
        rank = min(self.latent_dim, self.kdim, 2 * self.embed_dim)
        scores = product_dimension(self.embed_dim + self.has_bias, rank, self.head_dim)
        outputs = product_dimension(self.embed_dim, rank, self.head_dim)
        latents = rank * (self.kdim - rank)
        return self.num_heads * (scores + outputs) + latents + self.embed_dim * self.has_bias

    def _own_queries(self, query: Tensor) -> Tensor:
        return split_heads(self.q_proj(query), self.num_heads)  # (B, n, T, h)

    def _made(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, n, S, h) of latents (B, S, r)."""
        keys, values = self.k_proj(latents), self.v_proj(latents)
        return split_heads(keys, self.num_heads), split_heads(values, self.num_heads)

    def _maps(self, projection: torch.nn.Linear) -> Tensor:
        """(n, h, r)."""
        return projection.weight.view(self.num_heads, self.head_dim, self.latent_dim)

    def _absorbs(self, queries: int, keys: int, call: AttentionCall) -> bool:
        """Whether heads attend to latents, which is less work for few queries."""
        cannot = torch.is_grad_enabled() or call.dropout > 0.0
        if self.implementation is not None:
            if self.implementation == "absorbed" and cannot:
                raise ValueError(
                    "the attention implementation absorbed records no gradients and drops no "
                    "weights"
                )
            return self.implementation == "absorbed"
        is_traced = torch._C._get_tracing_state() is not None
        if cannot or is_traced:  # torch.jit traces with gradients, and checks without
            return False
        if lengths_are_open():
            return self.latent_dim <= self.head_dim
        width, latent = self.embed_dim, self.latent_dim
        absorbed = queries * latent * (width + self.num_heads * keys)  # products, halved
        return WORTH * absorbed < keys * width * (latent + queries)
