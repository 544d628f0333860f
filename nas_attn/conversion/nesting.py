"""Which attention can hold every function of another: what loses nothing on the way to it.

A model that is converted in steps, from larger to smaller, keeps on each step what the next one can
hold if each nests in the one before. Options that do not change the function, such as the groups
that heads are trained into, make no difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

from nas_attn.attention import Attention
from nas_attn.attention.collaborative import CollaborativeAttention
from nas_attn.attention.counting import build_on_meta
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.grouped_query import GroupedQueryAttention
from nas_attn.attention.head_embedding_add import HeadEmbeddingAddAttention
from nas_attn.attention.head_embedding_mul import HeadEmbeddingMulAttention
from nas_attn.attention.latent import LatentAttention
from nas_attn.attention.none import NoAttention
from nas_attn.attention.one_head import OneHeadAttention
from nas_attn.attention.pruning import PrunableAttention
from nas_attn.attention.reduced_key import ReducedKeyAttention
from nas_attn.attention.single_head import SingleHeadAttention
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape


def plan_nests(narrow: AttentionPlan, wide: AttentionPlan, shapes: Mapping[str, SiteShape]) -> bool:
    """Whether every module of a plan nests in the same module of another (see `nests`).

    Args:
        narrow: Plan that is to be held.
        wide: Plan that may hold it.
        shapes: Shapes of the model's sites.
    """
    return all(
        nests(one, other, shape)
        for site, shape in shapes.items()
        for one, other in zip(
            narrow.layers(site, shape.num_layers), wide.layers(site, shape.num_layers), strict=True
        )
    )


def nests(narrow: AttentionChoice, wide: AttentionChoice, shape: SiteShape) -> bool:
    """Whether attention of one choice can hold every function of another.

    What holds all that multi-head attention does holds everything by this measure: nothing that was
    trained is lost in it. (Heads that compare in more dimensions than one head of multi-head
    attention has are the exception to the letter; they were made of such heads, not the other way.)
    Attention that still is to be pruned holds its like alone, and so does what is not known here.

    Args:
        narrow: Choice that is to be held.
        wide: Choice that may hold it.
        shape: Shape of the module.

    Raises:
        PlanError: A choice does not fit the shape.
    """
    if narrow == wide:
        return True
    small, large = _built(narrow, shape), _built(wide, shape)
    if any(isinstance(m, PrunableAttention) and m.is_prunable for m in (small, large)):
        return False
    if isinstance(small, NoAttention):
        return large.out_proj.bias is not None or small.out_proj.bias is None
    return _holds_multi_head(large) or _holds(large, small)


@lru_cache(maxsize=1024)
def _built(choice: AttentionChoice, shape: SiteShape) -> Attention:
    return build_on_meta(choice, shape)


def _holds_multi_head(module: Attention) -> bool:
    heads = _count_heads(module)
    if isinstance(module, GroupedQueryAttention):
        return module.num_groups == module.num_value_groups == heads and not module.tied
    if isinstance(module, GroupedHeadAttention):
        return module.num_heads == heads
    if isinstance(module, ReducedKeyAttention):
        return module.key_dim >= module.embed_dim
    if isinstance(module, LatentAttention):
        return module.latent_dim >= min(module.kdim, 2 * module.embed_dim)
    if isinstance(module, CollaborativeAttention):
        return module.shared_dim >= module.embed_dim and module.num_value_heads == heads
    return False


def _holds(wide: Attention, narrow: Attention) -> bool:
    """Whether `wide`, which is less than multi-head attention, holds `narrow`."""
    one_head = isinstance(narrow, SingleHeadAttention)
    if isinstance(wide, GroupedQueryAttention):
        if wide.tied:
            is_tied = isinstance(narrow, GroupedQueryAttention) and narrow.tied
            return is_tied and wide.num_groups % _value_heads(narrow) == 0
        is_shared = wide.num_value_groups % _value_heads(narrow) == 0
        size = _count_heads(wide) // wide.num_groups
        return is_shared and _key_rows(narrow, size) <= wide.head_dim
    if isinstance(wide, GroupedHeadAttention):
        if isinstance(narrow, GroupedHeadAttention):
            are_there = narrow.names is None or set(narrow.names) <= set(wide.names or ())
            return narrow.num_heads <= wide.num_heads and are_there
        return isinstance(narrow, SingleHeadAttention) and narrow.narrow_output
    if isinstance(wide, ReducedKeyAttention):
        return _rank_of_a_head(narrow) <= wide.key_dim // wide.num_heads
    if isinstance(wide, LatentAttention):  # all that a scheme keeps of an input is a latent
        is_narrow = _rank_of_a_head(narrow) <= wide.head_dim
        return is_narrow and narrow.cache_size() <= wide.latent_dim
    if isinstance(wide, CollaborativeAttention):
        has_bias = wide.content_bias is not None
        is_shared = wide.num_value_heads % _value_heads(narrow) == 0
        return is_shared and _terms(narrow, has_bias=has_bias) <= wide.shared_dim
    if isinstance(wide, HeadEmbeddingMulAttention):
        is_shared = _value_heads(narrow) == 1
        return is_shared and _terms(narrow, has_bias=False) <= wide.head_dim
    if isinstance(wide, HeadEmbeddingAddAttention):
        return one_head or type(narrow) is type(wide)
    return type(narrow) is type(wide) and isinstance(wide, SingleHeadAttention)


def _count_heads(module: Attention) -> int:
    """Heads of the model, however many are left in the module."""
    return module.embed_dim // module.head_dim


def _value_heads(module: Attention) -> int:
    """Groups of neighbouring heads that share a value; as many as heads if none do."""
    if isinstance(module, GroupedQueryAttention):
        return module.num_value_groups
    if isinstance(module, CollaborativeAttention):
        return module.num_value_heads
    if isinstance(module, LatentAttention) and module.latent_dim <= module.head_dim:
        return 1
    return 1 if isinstance(module, OneHeadAttention) else _count_heads(module)


def _key_rows(module: Attention, size: int) -> float:
    """Key rows that serve any group of `size` neighbouring heads."""
    if isinstance(module, CollaborativeAttention):
        return module.shared_dim + (0 if module.content_bias is None else size)
    if isinstance(module, LatentAttention):
        return module.latent_dim
    if isinstance(module, GroupedQueryAttention):
        own = _count_heads(module) // module.num_groups
        return module.head_dim if own % size == 0 else math.inf
    return module.head_dim if isinstance(module, OneHeadAttention) else math.inf


def _rank_of_a_head(module: Attention) -> int:
    """Most dimensions in which one head compares."""
    if isinstance(module, ReducedKeyAttention):
        return module.key_dim // module.num_heads
    if isinstance(module, CollaborativeAttention):
        return module.shared_dim + (module.content_bias is not None)
    if isinstance(module, LatentAttention):
        return min(module.latent_dim, module.head_dim)
    return module.head_dim


def _terms(module: Attention, *, has_bias: bool) -> float:
    """Dimensions shared by all heads that the scores of a module need at most.

    Args:
        module: Module of a known scheme; others need no end of them.
        has_bias: Whether there is a content bias beside them.
    """
    heads = _count_heads(module)
    if isinstance(module, CollaborativeAttention):
        is_more = module.content_bias is not None and not has_bias
        return module.shared_dim + (heads if is_more else 0)
    if isinstance(module, HeadEmbeddingAddAttention):
        return module.head_dim if has_bias else 2 * module.head_dim
    if isinstance(module, OneHeadAttention):
        return module.head_dim
    if isinstance(module, ReducedKeyAttention):
        return module.key_dim
    if isinstance(module, GroupedHeadAttention):
        return module.num_heads * module.head_dim
    if isinstance(module, LatentAttention):
        return heads * min(module.latent_dim, module.head_dim)
    return module.embed_dim if isinstance(module, GroupedQueryAttention) else math.inf
