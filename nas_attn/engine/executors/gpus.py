"""Which GPUs of this machine each trial gets: those that this process was given, and no others."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from nas_attn.errors import UsageError

VARIABLE = "CUDA_VISIBLE_DEVICES"
SLURM_VARIABLES = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
"""The GPUs of a step, and of a batch job, numbered as the node has them (manual pages of srun and
sbatch), also where a control group shows a job its own devices alone, numbered from 0."""


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that this process may use, each by a name that CUDA_VISIBLE_DEVICES takes.

    Where that variable is set, as a scheduler does, they are those that it names (numbers, UUIDs,
    which may be cut short, or MIG instances), as far as there are such; set but empty, it names
    none. Where it is not set, they are those of a Slurm job, or else all of the machine.

    Raises:
        UsageError: which GPUs a Slurm job has cannot be read.
    """
    count, given = _count(), environment.get(VARIABLE)
    if count == 0:
        return []
    if given is None:
        job = _of_slurm(environment)
        # Of as many as a job has, or fewer, the control group hides the others.
        return job if 0 < len(job) < count else [str(index) for index in range(count)]
    names = [name.strip() for name in given.split(",") if name.strip()]
    if names and names[0].startswith("MIG-"):
        # Of several, a process sees the first alone, so they cannot be counted.
        return list(dict.fromkeys(names)) if count else []
    return names[:count]  # what comes after a name that means nothing is not seen


def seen_gpus() -> list[str]:
    """The same to be mentioned where no trial gets any; none if that cannot be read."""
    with contextlib.suppress(UsageError):
        return visible_gpus()
    return []


def _count() -> int:
    import torch

    return torch.cuda.device_count()


def _of_slurm(environment: Mapping[str, str]) -> list[str]:
    """The numbers of a Slurm job's GPUs on this node; none if Slurm says none.

    Raises:
        UsageError: what it says cannot be read.
    """
    for variable in SLURM_VARIABLES:
        given = environment.get(variable, "").strip()
        if given:
            return list(dict.fromkeys(str(n) for part in given.split(",") for n in _range(part)))
    return []


def _range(part: str) -> range:
    """Numbers of GPUs as Slurm writes them: one, or the first and last of several."""
    found = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part, re.ASCII)
    if found is None or int(found[2] or found[1]) < int(found[1]):
        raise UsageError(
            f"{' and '.join(SLURM_VARIABLES)} say which GPUs a Slurm job has, as 0,1 or 0-3, and "
            f"{part!r} is not understood: set {VARIABLE} to the numbers of the job's GPUs"
        )
    return range(int(found[1]), int(found[2] or found[1]) + 1)


def share_gpus(names: Sequence[str], gpus: float) -> tuple[list[str], int]:
    """Divide GPUs among trials.

    Args:
        names: Names of the GPUs that there are.
        gpus: GPUs of a trial; above 0. A fraction shares a GPU; more than one are whole ones, which
            no other trial has.

    Returns:
        The values of CUDA_VISIBLE_DEVICES that trials can have, no GPU in two of them, and how many
        trials can have the same one at a time.

    Raises:
        UsageError: there are not so many GPUs.
    """
    each = max(1, int(gpus))
    if each > 1 and any(name.startswith("MIG-") for name in names):
        raise UsageError(
            f"resources.gpus: a process can use one MIG instance only, so {each} are no use to a "
            "trial; set it to 1"
        )
    if len(names) < each:
        raise UsageError(
            f"resources.gpus: a trial wants {gpus:g} GPUs, but {_there_are(names)}; ask for fewer, "
            f"or give this process more ({VARIABLE} says which it may use{_given()})"
        )
    devices = [",".join(names[i * each : (i + 1) * each]) for i in range(len(names) // each)]
    return devices, trials_a_gpu(gpus)


def trials_a_gpu(gpus: float) -> int:
    """How many trials fit on a GPU, or on as many as each of them wants.

    Args:
        gpus: GPUs of a trial; above 0, and meant as it is written: ten trials of 0.1 fit, although
            ten times that floating-point number are more than 1.
    """
    return max(1, int(1 / Fraction(repr(gpus))))


def check_workers(workers: int, names: Sequence[str], gpus: float, room: int) -> None:
    """See that the GPUs have room for the trials that are wanted at a time.

    Raises:
        UsageError: they have not.
    """
    if workers > room:
        raise UsageError(
            f"execution.workers: {workers} trials at a time with {gpus:g} GPUs each do not fit, as "
            f"{_there_are(names)}; take at most {room}, or leave it out"
        )


def _there_are(names: Sequence[str]) -> str:
    return f"there are {len(names)}" + (f" ({', '.join(names)})" if names else "")


def _given() -> str:
    """What the environment says, where that is likely not to be what was meant."""
    given = os.environ.get(VARIABLE)
    if given is None:
        return ""
    if given.strip():
        return f"; it is {given!r}"
    job = _of_slurm(os.environ)
    slurm = f", though the Slurm job has {', '.join(job)}: unset it" if job else ""
    return f"; it is empty, which hides all{slurm}"
