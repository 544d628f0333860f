"""Derive the proposals of a search again from its record, as `nas-attn proposals --check` does.

A proposal follows from the trials that its driver knew of, and from which of them had ended as far
as that driver knew. The record keeps the latter with every trial, in little space: the first
proposal of a driver lists the trials that were `running` then, each later one only those that were
`over` since the driver's proposal before. What has begun meanwhile runs until it is said to be
over. With two drivers, A and B, of which each hears late of the ends of the other's trials:

    trial  of  on record        taken for running
    0      A   running: []      {}
    1      A   over: []         {0}        {} and the new 0
    2      B   running: [0, 1]  {0, 1}
    3      A   over: [0]        {1, 2}     {0} and the new 1, 2; less 0
    4      B   over: [2]        {0, 1, 3}  {0, 1} and the new 2, 3; less 2: 0 has ended, unheard
    5      A   over: [1]        {2, 3, 4}  {1, 2} and the new 3, 4; less 1: 2 has ended, unheard

`running_then` walks down this table. `derive_again` lets a proposer with an empty history begin and
end the same trials, and asks it for every proposal. A driver knew of all trials before its own: one
that came under another number than it was proposed for is withdrawn, and is not derived.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nas_attn.engine.trial_record import TrialRecord
from nas_attn.plan import AttentionPlan

if TYPE_CHECKING:
    from nas_attn.engine.candidates import Proposer  # which imports torch


@dataclass(frozen=True)
class Derivation:
    """A proposal on record and the same derived again.

    Args:
        trial: Trial on record.
        plan: Plan that the history gives; None if it gives none.
        parent: Trial from which it has that plan start, if it has to be one.
    """

    trial: TrialRecord
    plan: AttentionPlan | None
    parent: int | None = None

    @property
    def agrees(self) -> bool:
        return (self.plan, self.parent) == (self.trial.plan, self.trial.parent)


def running_then(trials: Sequence[TrialRecord]) -> Iterator[set[int]]:
    """For each trial, those that had not ended as far as its driver knew when it proposed it."""
    views: dict[str | None, tuple[int, set[int]]] = {}
    for trial in trials:
        origin = trial.proposal or {"number": trial.number, "running": []}
        if "running" in origin:
            running = set(origin["running"])
        else:
            since, before = views[trial.driver]
            running = {*before, *range(since, origin["number"])} - set(origin["over"])
        views[trial.driver] = origin["number"], running
        yield running


def derive_again(proposer: Proposer, trials: Sequence[TrialRecord]) -> Iterator[Derivation]:
    """Derive every proposal of a search from what its driver saw then.

    Args:
        proposer: Proposer of the study, with an empty history.
        trials: All trials on record.
    """
    for trial, running in zip(trials, running_then(trials), strict=True):
        if trial.proposal is not None and not trial.is_superseded:
            # A driver that knows every trial before its own knows all that their drivers knew.
            for ended in sorted(proposer.running - running):
                proposer.close(trials[ended])
            proposal = proposer.propose()
            if proposal is None:
                yield Derivation(trial, None)
            else:
                yield Derivation(trial, proposal.plan, proposal.parent)
        proposer.add(trial)
