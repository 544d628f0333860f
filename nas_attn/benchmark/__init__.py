"""How fast attention is: modules by themselves, and within fairseq's commands."""

from nas_attn._imports import require_extra

require_extra("search")
