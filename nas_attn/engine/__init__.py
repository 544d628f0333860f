"""The search: record, proposals, conductor and executors."""

from nas_attn._imports import require_extra

require_extra("search")
