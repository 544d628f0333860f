"""Which trained plan each plan of a queue starts from, where models are made smaller step by step.

A plan starts from the plan of least cost among those before it in the queue that cost more and in
which it nests (see `nas_attn.conversion.nesting`), and from the baseline if there is none. So a
queue that grows at its end changes nothing about what it held before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from nas_attn.engine.trial_record import TrialRecord
from nas_attn.plan import AttentionPlan


def parents_of(
    queue: Sequence[AttentionPlan],
    baseline: AttentionPlan,
    cost: Callable[[AttentionPlan], float],
    nests: Callable[[AttentionPlan, AttentionPlan], bool],
) -> dict[AttentionPlan, AttentionPlan]:
    """The plan that each plan of a queue starts from.

    Args:
        queue: Plans in the order in which they are begun.
        baseline: Plan that all others were made of; it has no parent.
        cost: Function that says what a plan costs.
        nests: Function that says whether the second plan can hold all that the first computes.
    """
    parents: dict[AttentionPlan, AttentionPlan] = {}
    costs = {plan: cost(plan) for plan in (*queue, baseline)}
    for plan in queue:
        if plan == baseline or plan in parents:
            continue
        larger = [other for other in parents if costs[other] > costs[plan] and nests(plan, other)]
        parents[plan] = min(larger, key=costs.__getitem__, default=baseline)
    return parents


def ancestors_of(
    plan: AttentionPlan, parents: Mapping[AttentionPlan, AttentionPlan]
) -> Iterator[AttentionPlan]:
    """The parent of a plan, the parent of that, and so on to the baseline."""
    while plan in parents:
        plan = parents[plan]
        yield plan


def chain_updates(trials: Sequence[TrialRecord]) -> dict[int, int]:
    """Updates of fine-tuning that a model has had since it was the trained baseline, by number of
    the trial: its own, its parent's, and so on.

    Args:
        trials: All trials, by number; those without a parent are left out.
    """
    updates: dict[int, int] = {}
    for trial in trials:
        if trial.parent is not None:
            updates[trial.number] = trial.updates + updates.get(trial.parent, 0)
    return updates
