"""The schemes as the papers write them: loops over batch, head, query and key, no sharing tricks.

Each function takes the module only for its weights and returns what the module should.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nas_attn.attention import Attention, CollaborativeAttention, MultiHeadAttention

Score = Callable[[Tensor, Tensor, int], Tensor]


def multi_head_score(module: MultiHeadAttention, x: Tensor, y: Tensor, head: int) -> Tensor:
    """(x W_Q^i + b_Q^i) (y W_K^i + b_K^i)^T for single tokens x and y."""
    rows = slice(head * module.head_dim, (head + 1) * module.head_dim)
    query = module.q_proj.weight[rows] @ x + module.q_proj.bias[rows]
    key = module.k_proj.weight[rows] @ y + module.k_proj.bias[rows]
    return query @ key


def collaborative_score(module: CollaborativeAttention, x: Tensor, y: Tensor, head: int) -> Tensor:
    """Cordonnier et al. 2020: x W_Q diag(m_i) W_K^T y^T, plus y v_i with a content bias."""
    query, key = module.q_proj.weight @ x, module.k_proj.weight @ y
    if module.content_bias is None:
        query, key = query + module.q_proj.bias, key + module.k_proj.bias
    score = query @ torch.diag(module.mixing[head]) @ key
    if module.content_bias is not None:
        score = score + module.content_bias.weight[head] @ y
    return score


SCORES: dict[str, Score] = {
    "multi_head": multi_head_score,
    "collaborative": collaborative_score,
}


def naive_attention(
    scheme: str, module: Attention, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor
) -> Tensor:
    """Attend token by token.

    Args:
        allowed: bool (batch, time, source), true where a query may attend to a key.

    Returns:
        (batch, time, embed_dim).
    """
    outputs = []
    for b in range(query.size(0)):
        for t in range(query.size(1)):
            heads = []
            for head in range(module.num_heads):
                rows = slice(head * module.head_dim, (head + 1) * module.head_dim)
                keys = [s for s in range(key.size(1)) if allowed[b, t, s]]
                if not keys:
                    heads.append(query.new_zeros(module.head_dim))
                    continue
                scores = torch.stack(
                    [SCORES[scheme](module, query[b, t], key[b, s], head) for s in keys]
                )
                weights = torch.softmax(scores / math.sqrt(module.head_dim), dim=0)
                values = torch.stack(
                    [
                        module.v_proj.weight[rows] @ value[b, s] + module.v_proj.bias[rows]
                        for s in keys
                    ]
                )
                heads.append(weights @ values)
            outputs.append(module.out_proj(torch.cat(heads)))
    return torch.stack(outputs).view(*query.shape[:2], -1)
