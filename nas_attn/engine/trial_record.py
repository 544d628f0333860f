"""What is written on the trials of a study, and how it is read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from nas_attn.engine.migrations import size_on_record
from nas_attn.engine.objectives import Objectives
from nas_attn.measures import ModelSize
from nas_attn.pareto import non_dominated
from nas_attn.plan import AttentionPlan
from nas_attn.pruned import left_text

PLAN, SIZE, BASELINE, COMMANDS, FOLDER = "plan", "parameters", "baseline", "commands", "folder"
LOSSES, SECONDS, REASON, DUPLICATE = "losses", "seconds", "reason", "duplicate_of"
THREADS, CERTAIN, PRUNED = "threads", "parameters_certain", "pruned_plans"
COSTS, PROPOSAL, DRIVER, FAILURE = "costs", "proposal", "driver", "failure"
ATTEMPTS, RUNGS, TESTS = "attempts", "rungs", "tests"
STARTS, WARM, UPDATES = "starts", "warm", "updates"
GPUS, MEMORY, PARENT = "gpus", "memory", "parent"
SETTLED = "settled"


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial as it is on record.

    Args:
        number: Number in the study.
        state: Optuna's state; PRUNED if it was stopped early or is over a limit.
        plan: The plan; None in records of old in which the driver died before it was planned.
        size: Exact parameters; of what pruning left once the trial is complete, mean over seeds.
        costs: Costs of the plan that are known, by name, parameters among the rest.
        cost_is_exact: Whether costs were known before training; not so if a vote decides what
            stays.
        pruned: Plans that pruning left, for each seed.
        losses: Best validation loss of each seed; empty unless complete.
        loss: Mean of `losses`, the first objective; None unless complete.
        point: The objectives, each better when lower; None unless complete.
        cost: The cost that trials are spread over.
        effective: Parameters of `cost` that are neither dead nor redundant, if it counts
            parameters.
        seconds: Training time.
        updates: Updates of all its trainings; 0 in records of old.
        is_warm: Whether it started from the trained baseline, converted, or from its parent.
        parent: Number of the trial whose model it started from, where plans start from larger ones;
            the baseline's if from that. None elsewhere.
        is_baseline: Whether it is the multi-head baseline.
        duplicate_of: Number of the trial whose result this proposal took over.
        is_superseded: Whether another driver's proposal came first, so that this one never ran.
        reason: Reason why it failed or was stopped.
        failure: Kind of the failure (see `nas_attn.trials.failures.FailureKind`).
        attempts: Faults after which the trial was continued.
        rungs: Decisions of the stopping rule, by number of validations.
        curve: Validation loss of the first seed by number of updates.
        settled: The first validation of `curve` that is of the model that a vote left; None if
            there was no vote, or where nothing hung on it.
        tests: Scores on the test set for each seed, if it was evaluated on.
        commands: The fairseq-train command of each seed.
        starts: The command of each seed that makes what its training starts from, if there is one.
        threads: CPU threads of a training.
        folder: Folder of its files.
        driver: Name of the driver that created it.
        gpus: GPUs that its processes see, or saw last, as CUDA names them, on Ray with the node;
            None on a CPU, and in records of old.
        memory: The most memory that a process of its trainings took, in MiB of `gpu` or `cpu`;
            empty in records of old.
        proposal: History that it was proposed from (see `nas_attn.engine.candidates`).
        params: The sampler's parameters, as the record has them.
        system: Attributes that the sampler keeps on the trial.
        values: The objectives as Optuna has them; None unless complete.
        started: Time when it was written down, in seconds since 1970.
        ended: Time when it was closed; None if it is not over.
    """

    number: int
    state: TrialState
    plan: AttentionPlan | None
    size: ModelSize | None
    costs: Mapping[str, float]
    cost_is_exact: bool
    pruned: tuple[AttentionPlan, ...]
    losses: tuple[float, ...]
    loss: float | None
    point: tuple[float, ...] | None
    cost: int | None
    effective: int | None
    seconds: float
    updates: int
    is_warm: bool
    is_baseline: bool
    duplicate_of: int | None
    is_superseded: bool
    reason: str | None
    failure: str | None
    attempts: tuple[Mapping[str, str], ...]
    rungs: Mapping[str, Mapping[str, Any]]
    curve: Mapping[int, float]
    tests: tuple[Mapping[str, float], ...]
    commands: tuple[tuple[str, ...], ...]
    starts: tuple[tuple[str, ...], ...]
    threads: int
    folder: str | None
    driver: str | None
    gpus: str | None = None
    memory: Mapping[str, float] = field(default_factory=dict)
    parent: int | None = None
    settled: int | None = None
    proposal: Mapping[str, Any] | None
    params: Mapping[str, Any]
    system: Mapping[str, Any]
    values: tuple[float, ...] | None
    started: float | None
    ended: float | None

    @property
    def text(self) -> str:
        """The plan in words, with what pruning left of it, layer by layer, if there was any."""
        if self.plan is None or not self.pruned:
            return "" if self.plan is None else str(self.plan)
        seed = " (first seed)" if len(set(self.pruned)) > 1 else ""
        return f"{self.plan}; left{seed}: {left_text(self.plan, self.pruned[0])}"

    @property
    def is_complete(self) -> bool:
        return self.state == TrialState.COMPLETE

    @property
    def is_trained(self) -> bool:
        """Complete by its own training."""
        return self.is_complete and self.duplicate_of is None

    @property
    def is_infeasible(self) -> bool:
        """Proposed, but over a limit, so it was not trained."""
        return self.state == TrialState.PRUNED and not self.rungs and not self.folder

    @property
    def is_over_limit(self) -> bool:
        """Refused, or trained and over a limit by what pruning left of it."""
        return self.is_infeasible or (self.state == TrialState.PRUNED and bool(self.pruned))

    @property
    def was_stopped(self) -> bool:
        """Stopped early by the stopping rule."""
        return self.state == TrialState.PRUNED and not self.is_over_limit

    @property
    def uses_budget(self) -> bool:
        """Whether the trial was paid for, or is being."""
        if self.plan is None or self.duplicate_of is not None:
            return False
        return not self.is_superseded and not self.is_infeasible


def parse_trial(trial: FrozenTrial, objectives: Objectives) -> TrialRecord:
    """Read what we wrote on an Optuna trial.

    Args:
        trial: One of a study's trials, as Optuna holds it.
        objectives: Objectives of the study.
    """
    attrs = trial.user_attrs
    size = size_on_record(attrs[SIZE]) if SIZE in attrs else None
    costs = {**({} if size is None else size._asdict()), **attrs.get(COSTS, {})}
    axis = objectives.primary_cost
    effective = size.acting(axis) if size is not None and axis in ModelSize._fields else None
    values = trial.values if trial.state == TrialState.COMPLETE else None
    proposal = attrs.get(PROPOSAL)
    return TrialRecord(
        number=trial.number,
        state=trial.state,
        plan=AttentionPlan.from_json(attrs[PLAN]) if PLAN in attrs else None,
        size=size,
        costs=costs,
        cost_is_exact=attrs.get(CERTAIN, True),
        pruned=tuple(AttentionPlan.from_json(plan) for plan in attrs.get(PRUNED, ())),
        losses=tuple(attrs.get(LOSSES, ())),
        loss=None if values is None else values[0],
        point=None if values is None else objectives.point(values[0], costs),
        cost=costs.get(axis),
        effective=effective,
        seconds=float(attrs.get(SECONDS, 0.0)),
        updates=int(attrs.get(UPDATES, 0)),
        is_warm=bool(attrs.get(WARM, False)),
        is_baseline=bool(attrs.get(BASELINE, False)),
        duplicate_of=attrs.get(DUPLICATE),
        is_superseded=proposal is not None and proposal["number"] != trial.number,
        reason=attrs.get(REASON),
        failure=attrs.get(FAILURE),
        attempts=tuple(attrs.get(ATTEMPTS, ())),
        rungs=attrs.get(RUNGS, {}),
        curve=dict(trial.intermediate_values),
        tests=tuple(attrs.get(TESTS, ())),
        commands=tuple(tuple(command) for command in attrs.get(COMMANDS, ())),
        starts=tuple(tuple(start) for start in attrs.get(STARTS, ())),
        threads=attrs.get(THREADS, 1),
        folder=attrs.get(FOLDER),
        driver=attrs.get(DRIVER),
        gpus=attrs.get(GPUS),
        memory=attrs.get(MEMORY, {}),
        parent=attrs.get(PARENT),
        settled=attrs.get(SETTLED),
        proposal=proposal,
        params=dict(trial.params),
        system=dict(trial.system_attrs),
        values=None if values is None else tuple(values),
        started=_seconds(trial.datetime_start),
        ended=_seconds(trial.datetime_complete),
    )


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def front(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trained trials that no other dominates, from small to large."""
    trained = [trial for trial in trials if trial.is_trained]
    chosen = [trained[index] for index in non_dominated([t.point or () for t in trained])]
    return sorted(chosen, key=lambda trial: (trial.cost or 0, trial.number))


@dataclass(frozen=True, kw_only=True)
class NewTrial:
    """A trial to write down.

    Args:
        attributes: User attributes.
        params: The sampler's parameters and their distributions.
        system: Attributes that the sampler keeps on the trial.
        state: State other than RUNNING if it is over as it begins.
        values: The objectives, if it is complete.
    """

    attributes: Mapping[str, Any]
    params: Mapping[str, tuple[Any, BaseDistribution]] = field(default_factory=dict)
    system: Mapping[str, Any] = field(default_factory=dict)
    state: TrialState = TrialState.RUNNING
    values: Sequence[float] | None = None

    def frozen(self) -> FrozenTrial:
        return optuna.trial.create_trial(
            state=self.state,
            values=None if self.values is None else list(self.values),
            params={name: value for name, (value, _) in self.params.items()},
            distributions={name: distribution for name, (_, distribution) in self.params.items()},
            user_attrs=dict(self.attributes),
            system_attrs=dict(self.system),
        )
