"""Which GPUs of this machine each trial gets: those that this process was given, and no others."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from nas_attn.errors import UsageError

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that this process may use, each by a name that CUDA_VISIBLE_DEVICES takes.

    Where that variable is set, as a scheduler does, they are those that it names (numbers, UUIDs or
    MIG instances), as far as there are such; else all of the machine.
    """
    given = environment.get(VARIABLE)
    if given is None:
        return [str(index) for index in range(_count())]
    names = [name.strip() for name in given.split(",") if name.strip()]
    if names and names[0].startswith("MIG-"):
        # Of several, a process sees the first alone, so they cannot be counted.
        return list(dict.fromkeys(names)) if _count() else []
    return names[: _count()]  # what comes after a name that means nothing is not seen


def _count() -> int:
    import torch

    return torch.cuda.device_count()


def deal_gpus(names: Sequence[str], gpus: float, workers: int | None) -> list[str]:
    """The value of CUDA_VISIBLE_DEVICES for each trial that runs at a time.

    Fractions share a GPU, as many as it holds, and are spread over all; more than one are whole
    ones, which no other trial has.

    Args:
        names: Names of the GPUs that there are.
        gpus: GPUs of a trial; above 0.
        workers: Trials at a time; as many as there is room for, if left out.

    Raises:
        UsageError: there are not so many GPUs.
    """
    there_are = f"there are {len(names)}" + (f" ({', '.join(names)})" if names else "")
    each = max(1, int(gpus))
    if each > 1 and any(name.startswith("MIG-") for name in names):
        raise UsageError(
            f"resources.gpus: a process can use one MIG instance only, so {each} are no use to a "
            "trial; set it to 1"
        )
    if len(names) < each:
        raise UsageError(
            f"resources.gpus: a trial wants {gpus:g} GPUs, but {there_are}; ask for fewer, or give "
            f"this process more ({VARIABLE} says which it may use)"
        )
    # 1 / 0.1 is a little less than 10 in places.
    shares = math.floor(1 / gpus + 1e-9) if gpus < 1 else 1
    room = len(names) // each * shares
    if workers is not None and workers > room:
        raise UsageError(
            f"execution.workers: {workers} trials at a time with {gpus:g} GPUs each do not fit, as "
            f"{there_are}; take at most {room}, or leave it out"
        )
    groups = [",".join(names[i * each : (i + 1) * each]) for i in range(len(names) // each)]
    return [groups[slot % len(groups)] for slot in range(room if workers is None else workers)]
