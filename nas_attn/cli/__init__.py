"""The `nas-attn` command: the only part that prints and exits."""

from nas_attn._imports import require_extra

require_extra("search")
