"""All that knows fairseq: flags, commands, data, models, checkpoints."""

from nas_attn.light_fairseq import defer_sklearn

defer_sklearn()
