"""What every executor is to the loop of a search.

An executor asks the loop for jobs (`next_job`), reports every validation of a trial (`progress`)
and stops the trial if the loop says so, and reports the trial's end (`finish`), all from one
thread, until the loop says that the search is over (`is_over`). An exception, Ctrl-C among them,
leaves `run` once all trials are stopped; what ran is then continued by the next search.
"""

from __future__ import annotations

from typing import Protocol

from nas_attn.engine.loop import SearchLoop


class Executor(Protocol):
    """Runs a loop's jobs until the search is over."""

    workers: int
    """Trials at a time."""
    frees_machine: bool
    """Whether no other trial runs on the machine of one that is to have it (`TrialJob`)."""

    def run(self, loop: SearchLoop) -> None:
        """Run until the search is over."""
