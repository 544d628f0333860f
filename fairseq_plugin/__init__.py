"""fairseq plugin of nas-attn: pass this folder as `--user-dir` to any fairseq command."""

from . import architectures, criterions, safe_globals, tasks

__all__ = ["architectures", "criterions", "safe_globals", "tasks"]
