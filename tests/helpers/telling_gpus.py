"""Tells what fairseq's training command would take from the GPUs: `python -m ... FILE [COUNT]`.

With COUNT that many GPUs are made up in a process that has fairseq imported already.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

FAKE_DRIVER = """
import os, threading, time
import torch

def count():
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2").split(",") if name]
    if names:
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    return len(names)

def zeros(*size, device="cpu", **more):
    if device == "cuda" and os.environ.get("FAKE_CUDA") == "broken":
        raise RuntimeError("CUDA error: initialization error")
    return real(*size, **more)

def is_available():
    torch.zeros = zeros
    if os.environ.get("FAKE_CUDA") == "hidden" and os.getpid() != began:
        return False
    return count() > 0

began = os.getpid()
real = torch.zeros
torch.cuda.device_count = count
torch.cuda.is_available = is_available
torch.backends.cuda.is_built = lambda: True
"""
"""For a file `sitecustomize.py`: to count GPUs starts a thread, as CUDA's driver does."""


def main() -> None:
    if len(sys.argv) > 2:
        torch.cuda.device_count = lambda: int(sys.argv[2])
        from fairseq_plugin.gpu_count import count_gpus_again

        count_gpus_again()

    from fairseq import options
    from fairseq.dataclass.configs import DistributedTrainingConfig
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    store = ConfigStore.instance()
    command = ["data", "--arch", "transformer_tiny"]
    training = options.parse_args_and_arch(options.get_training_parser(), command)
    generation = options.parse_args_and_arch(options.get_generation_parser(), ["data"])
    told = {
        "count": torch.cuda.device_count(),
        "made": OmegaConf.structured(DistributedTrainingConfig()),
        "training": convert_namespace_to_omegaconf(training).distributed_training,
        "generation": convert_namespace_to_omegaconf(generation).distributed_training,
        "kept": store.load("config.yaml").node.distributed_training,
        "kept alone": store.load("distributed_training.yaml").node,
    }
    plain = {name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
             for name, value in told.items()}  # fmt: skip
    Path(sys.argv[1]).write_text(json.dumps(plain, default=str))


if __name__ == "__main__":
    main()
