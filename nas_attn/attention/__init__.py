"""Attention schemes as plain PyTorch modules, usable without fairseq."""

from nas_attn.attention.base import Attention
from nas_attn.attention.collaborative import CollaborativeAttention
from nas_attn.attention.grouped_query import GroupedQueryAttention
from nas_attn.attention.head_embedding_add import HeadEmbeddingAddAttention
from nas_attn.attention.head_embedding_mul import HeadEmbeddingMulAttention
from nas_attn.attention.latent import LatentAttention
from nas_attn.attention.multi_head import MultiHeadAttention
from nas_attn.attention.multi_query import MultiQueryAttention
from nas_attn.attention.none import NoAttention
from nas_attn.attention.reduced_key import ReducedKeyAttention
from nas_attn.attention.registry import SCHEMES, Scheme, build_attention, get_scheme
from nas_attn.attention.shared_key_value import SharedKeyValueAttention
from nas_attn.attention.single_head import SingleHeadAttention
from nas_attn.attention.thresholds_file import use_thresholds

__all__ = [
    "SCHEMES",
    "Attention",
    "CollaborativeAttention",
    "GroupedQueryAttention",
    "HeadEmbeddingAddAttention",
    "HeadEmbeddingMulAttention",
    "LatentAttention",
    "MultiHeadAttention",
    "MultiQueryAttention",
    "NoAttention",
    "ReducedKeyAttention",
    "Scheme",
    "SharedKeyValueAttention",
    "SingleHeadAttention",
    "build_attention",
    "get_scheme",
    "use_thresholds",
]
