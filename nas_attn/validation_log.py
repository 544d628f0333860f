"""The report file of a training: one validation a line, read by `nas_attn.trials.runner`.

The file is named by the environment variable `NAS_ATTN_REPORT`. A line is a JSON object: time
(seconds since 1970), epoch, num_updates, parameters (counts by name), phase of pruning (null where
nothing is pruned) and metrics.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

REPORT_VARIABLE = "NAS_ATTN_REPORT"


def report_validation(
    num_updates: int,
    parameters: Mapping[str, int | None],
    metrics: Mapping[str, float],
    *,
    epoch: int | None = None,
    phase: str | None = None,
) -> None:
    """Append a validation to the report, if one is asked for."""
    path = os.environ.get(REPORT_VARIABLE)
    if path is None:
        return
    line = {
        "time": time.time(),
        "epoch": epoch,
        "num_updates": num_updates,
        "parameters": dict(parameters),
        "phase": phase,
        "metrics": dict(metrics),
    }
    text = json.dumps(line) + "\n"
    with Path(path).open("a+b") as file:
        # A line that was cut off, by a kill or a full disk, must not take this one with it.
        if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
            text = "\n" + text
        file.write(text.encode())
