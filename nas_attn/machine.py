"""This machine and its libraries, for people: CPUs, GPUs, versions."""

from __future__ import annotations

import os


def cpu_count() -> int:
    """CPUs that this process may use; where the system does not say (macOS), all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def library_versions() -> dict[str, str]:
    """Versions of the libraries that results hang on, and of Python."""
    import platform
    from importlib import metadata

    names = ("nas-attn", "torch", "optuna", "fairseq-fixed", "sentencepiece", "numpy")
    return {name: metadata.version(name) for name in names} | {"python": platform.python_version()}


def machine_text() -> str:
    """CPUs and GPUs of this machine."""
    import platform

    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{os.cpu_count()} CPUs ({platform.machine()})" + "".join(f", {gpu}" for gpu in gpus)
