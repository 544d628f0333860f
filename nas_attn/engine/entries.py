"""What the loop of a search writes on trials; `nas_attn.engine.trial_record` reads it back."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nas_attn.engine import trial_record as fields
from nas_attn.engine.candidates import Proposal
from nas_attn.engine.objectives import PEAK_MEMORY, Objectives
from nas_attn.engine.plan_costs import PlanCosts
from nas_attn.errors import PlanError
from nas_attn.measures import ModelSize
from nas_attn.plan import AttentionPlan
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.job import TrialJob, TrialResult


def proposal_entry(proposal: Proposal, driver: str) -> dict[str, Any]:
    """Attributes of a trial as it is proposed.

    Args:
        proposal: Proposal that becomes the trial.
        driver: Name of the driver that writes it down.
    """
    entry = {
        fields.PLAN: proposal.plan.to_json(),
        **cost_entry(proposal.costs),
        fields.PROPOSAL: proposal.origin(),
        fields.DRIVER: driver,
    }
    if proposal.parent is not None:
        entry[fields.PARENT] = proposal.parent
    return entry


def cost_entry(costs: Mapping[str, float]) -> dict[str, Any]:
    """Attributes for what a plan costs: parameters, and the rest."""
    sizes = {name: costs[name] for name in ModelSize._fields}
    others = {name: cost for name, cost in costs.items() if name not in sizes}
    return {fields.SIZE: sizes, fields.COSTS: others}


def job_entry(job: TrialJob) -> dict[str, Any]:
    """Attributes for how a trial is trained."""
    about: dict[str, Any] = {
        fields.COMMANDS: [list(run.command) for run in job.runs],
        fields.THREADS: job.threads,
        fields.FOLDER: job.folder,
    }
    starts = [list(run.start) for run in job.runs if run.start]
    if starts:
        is_warm = bool(job.needs) and not any(run.is_trained_first for run in job.runs)
        about |= {fields.STARTS: starts, fields.WARM: is_warm}
    return about


def result_entry(result: TrialResult, costs: Mapping[str, float]) -> dict[str, Any]:
    """Attributes for what a training gave.

    Args:
        result: Result of the trial, with losses.
        costs: Costs of the plan, what pruning left and what was measured included.
    """
    found: dict[str, Any] = {fields.LOSSES: list(result.losses)}
    if result.plans:
        found[fields.PRUNED] = list(result.plans)
    found |= cost_entry(costs)
    if result.tests:
        found[fields.TESTS] = list(result.tests)
    if result.memory:
        found[fields.MEMORY] = result.memory
    return found


def costs_after(
    result: TrialResult, before: Mapping[str, float], costs: PlanCosts, objectives: Objectives
) -> dict[str, float]:
    """What a plan costs once it is trained: as before, but for what was pruned or measured."""
    after = {**before, **_mean_costs(result.plans, costs), **result.measured}
    if PEAK_MEMORY in objectives.costs:
        after[PEAK_MEMORY] = result.memory.get("gpu", result.memory.get("cpu", math.nan))
    return after


def checked(result: TrialResult, costs: PlanCosts, objectives: Objectives) -> TrialResult:
    """A result as it is, or a failure if it cannot be one, whichever executor reports it.

    Args:
        result: Result of a trial.
        costs: Costs of plans.
        objectives: Objectives that it is to have.
    """
    if not result.losses:
        return result
    error, failure = None, FailureKind.NOT_FINITE
    if not all(math.isfinite(value) for value in result.losses):
        losses = ", ".join(str(value) for value in result.losses)
        error = f"the {objectives.metric} is {losses}"
    elif PEAK_MEMORY in objectives.costs and not result.memory:
        error, failure = f"its trainings did not report their {PEAK_MEMORY}", FailureKind.TRAINING
    else:
        try:
            _mean_costs(result.plans, costs)
        except PlanError as wrong:
            error, failure = f"what pruning left is no plan: {wrong}", FailureKind.DAMAGED
    if error is None:
        return result
    return replace(result, losses=(), plans=(), error=error, failure=failure)


def _mean_costs(plans: Sequence[dict[str, Any]], costs: PlanCosts) -> dict[str, float]:
    """What pruning left costs, a mean over seeds."""
    known = [costs.known(AttentionPlan.from_json(plan)) for plan in plans]
    names = known[0] if known else ()
    return {name: round(statistics.fmean(k[name] for k in known)) for name in names}
