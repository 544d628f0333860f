"""The schemes as the papers write them: loops over batch, head, query and key, no sharing tricks.

Each function takes the module only for its weights and returns what the module should. For single
tokens x (of the query's input) and y (of the keys' and values'), a scheme is the score of head i
before scaling, and the value of head i.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Score = Callable[[Any, Tensor, Tensor, int], Tensor]
Value = Callable[[Any, Tensor, int], Tensor]


def apply(projection: nn.Linear, x: Tensor, block: int = 0, blocks: int = 1) -> Tensor:
    """One of several equal blocks of rows of a projection, applied to a token."""
    size = projection.out_features // blocks
    outputs = []
    for row in range(block * size, (block + 1) * size):
        output = projection.weight[row] @ x
        outputs.append(output if projection.bias is None else output + projection.bias[row])
    return torch.stack(outputs)


def grouped_query_score(module: Any, x: Tensor, y: Tensor, head: int) -> Tensor:
    """Ainslie et al. 2023: own queries; heads of a group attend to the same keys."""
    query = apply(module.q_proj, x, head, module.num_heads)
    if module.tied:
        return query @ grouped_query_value(module, y, head)
    group = head * module.num_groups // module.num_heads
    return query @ apply(module.k_proj, y, group, module.num_groups)


def grouped_query_value(module: Any, y: Tensor, head: int) -> Tensor:
    """Chen et al. 2024: values of other groups than keys; Zadouri et al. 2025: tied to keys."""
    group = head * module.num_value_groups // module.num_heads
    projection = module.kv_proj if module.tied else module.v_proj
    return apply(projection, y, group, module.num_value_groups)


def collaborative_score(module: Any, x: Tensor, y: Tensor, head: int) -> Tensor:
    """Cordonnier et al. 2020: x W_Q diag(m_i) W_K^T y^T, plus y v_i with a content bias."""
    score = apply(module.q_proj, x) @ torch.diag(module.mixing[head]) @ apply(module.k_proj, y)
    if module.content_bias is not None:
        score = score + module.content_bias.weight[head] @ y
    return score


def collaborative_value(module: Any, y: Tensor, head: int) -> Tensor:
    group = head * module.num_value_heads // module.num_heads
    return apply(module.v_proj, y, group, module.num_value_heads)


def head_embedding_add_score(module: Any, x: Tensor, y: Tensor, head: int) -> Tensor:
    """Xue and Aletras 2023, MHE-ADD, key embedding and all."""
    query = apply(module.q_proj, x) + module.query_embedding[head]
    return query @ (apply(module.k_proj, y) + module.key_embedding[head])


def head_embedding_add_value(module: Any, y: Tensor, head: int) -> Tensor:
    return apply(module.v_proj, y) + module.value_embedding[head]


def head_embedding_mul_score(module: Any, x: Tensor, y: Tensor, head: int) -> Tensor:
    """Xue and Aletras 2023, MHE-MUL, with 1 + e or e."""
    query = apply(module.q_proj, x) * (module.offset + module.query_embedding[head])
    return query @ (apply(module.k_proj, y) * (module.offset + module.key_embedding[head]))


def head_embedding_mul_value(module: Any, y: Tensor, head: int) -> Tensor:
    return apply(module.v_proj, y) * (module.offset + module.value_embedding[head])


def single_head_score(module: Any, x: Tensor, y: Tensor, head: int) -> Tensor:
    """The same for every head."""
    return apply(module.q_proj, x) @ apply(module.k_proj, y)


def single_head_value(module: Any, y: Tensor, head: int) -> Tensor:
    return apply(module.v_proj, y)


def reduced_key_score(module: Any, x: Tensor, y: Tensor, head: int) -> Tensor:
    """Own queries and keys, narrower than values."""
    query = apply(module.q_proj, x, head, module.num_heads)
    return query @ apply(module.k_proj, y, head, module.num_heads)


def reduced_key_value(module: Any, y: Tensor, head: int) -> Tensor:
    return apply(module.v_proj, y, head, module.num_heads)


def shared_key_value_score(module: Any, x: Tensor, y: Tensor, head: int) -> Tensor:
    """One projection gives the key and the value of a head."""
    query = apply(module.q_proj, x, head, module.num_heads)
    return query @ apply(module.kv_proj, y, head, module.num_heads)


def shared_key_value_value(module: Any, y: Tensor, head: int) -> Tensor:
    return apply(module.kv_proj, y, head, module.num_heads)


def none_score(module: Any, x: Tensor, y: Tensor, head: int) -> Tensor:
    """Nothing is compared."""
    return x.new_zeros(())


def none_value(module: Any, y: Tensor, head: int) -> Tensor:
    """Of no width, so that the output's bias is left."""
    return y[:0]


def latent_score(module: Any, x: Tensor, y: Tensor, head: int) -> Tensor:
    """DeepSeek-AI 2024, without rotary positions: keys and values are made of one latent."""
    query = apply(module.q_proj, x, head, module.num_heads)
    return query @ apply(module.k_proj, apply(module.c_proj, y), head, module.num_heads)


def latent_value(module: Any, y: Tensor, head: int) -> Tensor:
    return apply(module.v_proj, apply(module.c_proj, y), head, module.num_heads)


NAIVE: dict[str, tuple[Score, Value]] = {
    "multi_head": (grouped_query_score, grouped_query_value),
    "collaborative": (collaborative_score, collaborative_value),
    "head_embedding_add": (head_embedding_add_score, head_embedding_add_value),
    "head_embedding_mul": (head_embedding_mul_score, head_embedding_mul_value),
    "grouped_query": (grouped_query_score, grouped_query_value),
    "grouped_head": (reduced_key_score, reduced_key_value),
    "multi_query": (grouped_query_score, grouped_query_value),
    "single_head": (single_head_score, single_head_value),
    "reduced_key": (reduced_key_score, reduced_key_value),
    "shared_key_value": (shared_key_value_score, shared_key_value_value),
    "none": (none_score, none_value),
    "latent": (latent_score, latent_value),
}


def naive_attention(
    scheme: str, module: Any, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor
) -> Tensor:
    """Attend token by token.

    Args:
        allowed: bool (batch, time, source), true where a query may attend to a key. A query
            that may attend nowhere gets heads of zeros, and of added value embeddings.

    Returns:
        (batch, time, embed_dim).
    """
    score, head_value = NAIVE[scheme]
    heads = 1 if getattr(module, "narrow_output", False) else module.num_heads
    outputs = []
    for b in range(query.size(0)):
        for t in range(query.size(1)):
            joined = []
            for head in range(heads):
                tokens = [s for s in range(key.size(1)) if allowed[b, t, s]]
                if not tokens:
                    nothing = query.new_zeros(module.out_proj.in_features // heads)
                    if scheme == "head_embedding_add":
                        nothing = nothing + module.value_embedding[head]
                    joined.append(nothing)
                    continue
                scores = torch.stack([score(module, query[b, t], key[b, s], head) for s in tokens])
                weights = torch.softmax(scores / math.sqrt(module.head_dim), dim=0)
                values = torch.stack([head_value(module, value[b, s], head) for s in tokens])
                joined.append(weights @ values)
            outputs.append(apply(module.out_proj, torch.cat(joined)))
    return torch.stack(outputs).view(*query.shape[:2], -1)
