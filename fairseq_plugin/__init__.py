"""fairseq plugin of nas-attn: pass this folder as `--user-dir` to any fairseq command.

`safe_globals` and `numpy_names` mend what fairseq 0.12.3 breaks under today's torch and numpy.
"""

from . import architectures, bleu, criterions, numpy_names, safe_globals, tasks

__all__ = ["architectures", "bleu", "criterions", "numpy_names", "safe_globals", "tasks"]
