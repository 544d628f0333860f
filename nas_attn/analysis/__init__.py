"""What the trials on record say."""

from nas_attn._imports import require_extra

require_extra("search")
