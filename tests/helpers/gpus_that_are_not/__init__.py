"""A `--user-dir` by which fairseq trains on a CPU as it does where it sees several GPUs.

It is the plugin's, but that fairseq counts `NAS_ATTN_TEST_GPUS` devices, and so starts as many
processes, and that PyTorch's `DistributedDataParallel` is told of no device, which on a CPU it
refuses. With `--distributed-backend=gloo` all else is what happens with GPUs.
"""

import os
from typing import Any

import torch
from fairseq.models import distributed_fairseq_model
from torch.nn.parallel import DistributedDataParallel

import fairseq_plugin  # noqa: F401  registers the architectures


def _without_device(*, device_ids: Any, output_device: Any, **named: Any) -> Any:
    return DistributedDataParallel(**named)


distributed_fairseq_model.DistributedDataParallel = _without_device
if "NAS_ATTN_TEST_GPUS" in os.environ:
    torch.cuda.device_count = lambda: int(os.environ["NAS_ATTN_TEST_GPUS"])
