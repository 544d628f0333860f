"""The number of GPUs, which fairseq reads once as it is imported."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq.dataclass.initialize import hydra_init

COUNTS = ("distributed_world_size", "distributed_num_procs", "nprocs_per_node")
"""Settings whose default is the number of GPUs."""


def count_gpus_again() -> None:
    """Put right what torch and fairseq know of the GPUs, in a process that saw others before.

    It is what a process knows that imports fairseq with CUDA_VISIBLE_DEVICES as it is now. CUDA
    must not have been started.
    """
    torch.cuda._cached_device_count = None
    count = max(1, torch.cuda.device_count())
    fields = DistributedTrainingConfig.__dataclass_fields__
    if count == fields["distributed_world_size"].default:
        return
    for name in COUNTS:
        fields[name].default = count
        setattr(DistributedTrainingConfig, name, count)
    init: Any = DistributedTrainingConfig.__init__
    init.__defaults__ = tuple(
        count if parameter.name in COUNTS else parameter.default
        for parameter in inspect.signature(init).parameters.values()
        if parameter.default is not parameter.empty
    )
    hydra_init()  # it keeps copies
