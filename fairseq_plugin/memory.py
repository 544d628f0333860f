"""The most memory that a process has had: of a GPU, or of the machine."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch
import torch.distributed as dist

MEBIBYTE = 1024 * 1024
STATUS = Path("/proc/self/status")


class PeakMemory:
    """What a training process takes at most.

    fairseq starts torch's own count anew after every update, so it is to be looked at before.
    """

    def __init__(self) -> None:
        self._of_gpu = 0.0

    def look(self) -> None:
        """See how much of a GPU there was since the last look."""
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self._of_gpu = max(self._of_gpu, torch.cuda.max_memory_allocated() / MEBIBYTE)

    def of_largest_process(self, device: torch.device) -> dict[str, float]:
        """The peak of that process of the training which took most; all of them must ask.

        Args:
            device: Device of the model.

        Returns:
            MiB by what they are of: `gpu` (tensors that torch had allocated) or `cpu` (resident
            memory of the process, what it shares with others included).
        """
        self.look()
        kind = "gpu" if device.type == "cuda" else "cpu"
        peak = torch.tensor(self._of_gpu if kind == "gpu" else resident_peak(), device=device)
        if dist.is_initialized():
            dist.all_reduce(peak, op=dist.ReduceOp.MAX)
        return {kind: round(float(peak), 1)}


def resident_peak() -> float:
    """The most resident memory of this process so far, in MiB."""
    if STATUS.is_file():
        # getrusage would also count the process that started this one, up to then.
        found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
        if found is not None:
            return int(found[1]) / 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / MEBIBYTE if sys.platform == "darwin" else most / 1024
