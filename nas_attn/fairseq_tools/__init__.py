"""All that knows fairseq: flags, commands, data, models, checkpoints."""

from nas_attn._imports import require_extra
from nas_attn.light_fairseq import defer_sklearn, leave_logging

require_extra("search")
defer_sklearn()
leave_logging()
