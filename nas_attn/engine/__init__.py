"""The search: record, proposals, loop and executors."""

from nas_attn._imports import require_extra

require_extra("search")
