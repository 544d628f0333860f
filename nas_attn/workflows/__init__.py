"""What a user asks for, from beginning to end; values out, events meanwhile."""

from nas_attn._imports import require_extra

require_extra("search")
