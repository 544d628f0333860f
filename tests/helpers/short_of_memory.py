"""fairseq-train with a GPU's memory running out in the third batch: `python -m ... ARGUMENTS`."""

from __future__ import annotations

import runpy
import sys
from typing import Any

import torch
from fairseq.tasks.fairseq_task import FairseqTask

train_step = FairseqTask.train_step
batches: list[int] = []


def short_train_step(*arguments: Any, **options: Any) -> Any:
    batches.append(1)
    if len(batches) == 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return train_step(*arguments, **options)


if __name__ == "__main__":
    FairseqTask.train_step = short_train_step
    sys.modules.pop("fairseq_cli.train", None)
    runpy.run_module("fairseq_cli.train", run_name="__main__", alter_sys=True)
