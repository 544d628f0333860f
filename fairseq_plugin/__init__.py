"""fairseq plugin of nas-attn: pass this folder as `--user-dir` to any fairseq command."""

from . import architectures, safe_globals, tasks

__all__ = ["architectures", "safe_globals", "tasks"]
