"""Decoders for the benchmark, and the time that a step and an order of hypotheses take them."""

from __future__ import annotations

import copy
import statistics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_attn.benchmark.setting import Setting, Shape

State = dict[str, Any]

STEPS = 6
"""Steps in a row, as a decoder takes them; the first, which makes room, is left out."""

PIECE = 1024
"""Tokens of a prefix that are taken in at a time: stock fairseq holds all their scores."""


class FusedDecoder(nn.Module):
    """Multi-head attention on torch's fused attention; caches are joined anew in every step.

    Called as fairseq's attention, with tensors (time, batch, width).
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        incremental_state: State,
        need_weights: bool = False,
    ) -> tuple[Tensor, None]:
        queries, keys, values = (
            projection(x).unflatten(2, (self.num_heads, -1)).permute(1, 2, 0, 3)
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        if incremental_state:
            keys = torch.cat([incremental_state["keys"], keys], dim=2)
            values = torch.cat([incremental_state["values"], values], dim=2)
        incremental_state.update(keys=keys, values=values)
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return self.out_proj(attended.permute(2, 0, 1, 3).flatten(2)), None

    def reorder_incremental_state(self, incremental_state: State, order: Tensor) -> None:
        for name, tensor in incremental_state.items():
            incremental_state[name] = tensor.index_select(0, order)


def filled(module: Any, shape: Shape, setting: Setting) -> State:
    """What a decoder keeps after `length` tokens of every sentence."""
    state: State = {}
    with torch.no_grad():
        for start in range(0, shape.length, PIECE):
            steps = min(PIECE, shape.length - start)
            piece = setting.tensor(steps, shape.batch, setting.embed_dim)
            module(piece, piece, piece, incremental_state=state, need_weights=False)
    return state


def time_steps(module: Any, state: State, shape: Shape, setting: Setting) -> float:
    """Seconds of a step, median of some in a row from a state, which is left as it is."""
    state = copy.deepcopy(state)
    token = setting.tensor(1, shape.batch, setting.embed_dim)
    taken = []
    with torch.no_grad():
        for _ in range(1 + STEPS):
            began = setting.now()
            module(token, token, token, incremental_state=state, need_weights=False)
            taken.append(setting.now() - began)
    return statistics.median(taken[1:])


def time_orders(module: Any, state: State, shape: Shape, setting: Setting) -> float:
    """Seconds to put all hypotheses in another order, median of some in a row."""
    state = copy.deepcopy(state)
    taken = []
    with torch.no_grad():
        for _ in range(1 + STEPS):
            order = torch.randint(shape.batch, (shape.batch,), device=setting.device)
            began = setting.now()
            module.reorder_incremental_state(state, order)
            taken.append(setting.now() - began)
    return statistics.median(taken[1:])
