"""Everything that knows fairseq: data, command lines, model sizes and running a training."""
