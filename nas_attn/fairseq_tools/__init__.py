"""All that knows fairseq: flags, commands, data, models, checkpoints."""
