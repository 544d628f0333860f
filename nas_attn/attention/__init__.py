"""Attention schemes as plain PyTorch modules, usable without fairseq."""

from nas_attn.attention.base import Attention
from nas_attn.attention.collaborative import CollaborativeAttention
from nas_attn.attention.multi_head import MultiHeadAttention
from nas_attn.attention.registry import SCHEMES, Scheme, build_attention, get_scheme

__all__ = [
    "SCHEMES",
    "Attention",
    "CollaborativeAttention",
    "MultiHeadAttention",
    "Scheme",
    "build_attention",
    "get_scheme",
]
