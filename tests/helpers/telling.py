"""A stand-in for a training that tells what it sees: `python -m tests.helpers.telling TOTAL FILE`.

It writes a line to FILE as it ends: CUDA_VISIBLE_DEVICES as the process has it, when it began and
when it ended. It has the memory of a GPU (or of a machine without) for itself: with more than
`TELLING_MOST` of its kind on one it ends as torch does; there is no limit if that is not set.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

SECONDS = 0.3


def main() -> None:
    total, told = int(sys.argv[1]), Path(sys.argv[2])
    seen, began = os.environ.get("CUDA_VISIBLE_DEVICES"), time.time()
    mine = [told.with_name(f"on-{name}") / str(os.getpid()) for name in str(seen).split(",")]
    for place in mine:
        place.parent.mkdir(exist_ok=True)
        place.touch()
    try:
        time.sleep(SECONDS)
        beside = max(len(list(place.parent.iterdir())) for place in mine)
        if beside > float(os.environ.get("TELLING_MOST", "inf")):
            sys.exit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    finally:
        for place in mine:
            place.unlink()
    line = {"num_updates": 1, "metrics": {"loss": 1.0}, "parameters": {"total": total}}
    Path(os.environ["NAS_ATTN_REPORT"]).write_text(json.dumps(line) + "\n")
    with told.open("a") as file:
        file.write(json.dumps([seen, began, time.time()]) + "\n")


def as_telling(command: tuple[str, ...]) -> list[str]:
    """In place of `executable_form`."""
    return [sys.executable, "-m", "tests.helpers.telling", *command]


if __name__ == "__main__":
    main()
