"""Which plan is trained next: a pure function of the history.

A proposer holds the history as the sampler is to see it. The same history gives the same proposal,
whenever a search was interrupted and whoever asks; every trial keeps on record which others were
still running when it was proposed, and so all proposals of a search can be derived again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import NSGAIISampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from nas_attn.conversion.nesting import plan_nests
from nas_attn.engine.config import SearchConfig
from nas_attn.engine.known_costs import KnownCostSearch, predicted_changes
from nas_attn.engine.ladder import ancestors_of, parents_of
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.plan_costs import PlanCosts, certain_excess, expected_costs
from nas_attn.engine.samplers import (
    StratifiedSampler,
    answers_of,
    decisions_of,
    distributions_of,
    make_sampler,
    recorded_params,
    sampled_params,
    suggest,
)
from nas_attn.engine.stopping import was_stopped
from nas_attn.engine.trial_record import NewTrial, TrialRecord
from nas_attn.plan import AttentionPlan
from nas_attn.space import Dimension, Option, SearchSpace

MAX_REFUSALS = 8
"""Proposals in a row that repeat plans or break limits before the stratified proposer is asked."""


OUR_SAMPLERS = ("stratified_random", "known_cost")
"""Samplers that are not Optuna's."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A plan to be tried.

    Args:
        number: Number that the trial is to have.
        plan: Proposed plan.
        costs: Expected costs.
        certain: Whether they are known before training.
        params: The sampler's parameters and their distributions, as the record has them.
        system: Attributes that the sampler keeps on the trial.
        running: Trials that were not over when it was proposed, as the first proposal of a driver
            keeps them; None for later ones.
        over: Trials that have ended since the driver's proposal before.
        duplicate_of: The trial that has the plan already.
        excess: The limit that the plan breaks, however much of it is pruned.
        parent: The trial whose model it starts from, where plans start from larger ones.
    """

    number: int
    plan: AttentionPlan
    costs: Mapping[str, int]
    certain: bool
    params: Mapping[str, tuple[Any, BaseDistribution]]
    system: Mapping[str, Any]
    running: tuple[int, ...] | None
    over: tuple[int, ...]
    duplicate_of: int | None = None
    excess: str | None = None
    parent: int | None = None

    def origin(self) -> dict[str, Any]:
        """What the record keeps of where the proposal came from."""
        if self.running is None:
            return {"number": self.number, "over": list(self.over)}
        return {"number": self.number, "running": list(self.running)}


class _History(InMemoryStorage):
    """Trials in memory as a sampler is shown them, with the samplers' caches apart.

    What samplers keep on a study depends on when they were asked first, so it is thrown away.
    """

    def __init__(
        self, directions: Sequence[StudyDirection], decisions: Mapping[str, Dimension]
    ) -> None:
        super().__init__()
        self.caches: dict[str, Any] = {}
        self.study = optuna.create_study(storage=self, directions=list(directions))
        self._study_id = self.get_study_id_from_name(self.study.study_name)
        self._decisions = decisions
        self._distributions = distributions_of(decisions)
        self._ids: list[int] = []

    def begin(self, trial: TrialRecord) -> None:
        params = {
            name: (value, self._distributions[name])
            for name, value in sampled_params(self._decisions, trial.params).items()
        }
        new = NewTrial(attributes={}, params=params, system=trial.system)
        self._ids.append(self.create_new_trial(self._study_id, new.frozen()))

    def end(self, trial: TrialRecord) -> None:
        self.set_trial_state_values(self._ids[trial.number], trial.state, trial.values)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.caches[key] = value

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return dict(self.caches)


class Proposer:
    """Proposes plans for one study.

    Args:
        space: Space of the plans that may be proposed.
        costs: Costs of plans.
        objectives: Objectives, with the axis that plans are spread over, and limits.
        config: Sampler, its start and the seed.
        baseline: Plan that is proposed first.
        queue: Plans of the space that come next, in this order.
        predicted: By how much single conversions of the trained baseline raise its loss, by the
            digest of the plan, votes as they are on offer; the sampler `known_cost` asks it.
    """

    def __init__(
        self,
        space: SearchSpace,
        costs: PlanCosts,
        objectives: Objectives,
        config: SearchConfig,
        baseline: AttentionPlan,
        queue: Sequence[AttentionPlan] = (),
        predicted: Mapping[str, float] | None = None,
    ) -> None:
        self.space = space
        self.costs = costs
        self.objectives = objectives
        self.config = config
        self.baseline = baseline
        self.queue = tuple(queue)
        self._predicted = predicted or {}
        limit = objectives.limits.get(objectives.primary_cost)
        self._stratified = StratifiedSampler(space, self._axis, config.seed, limit)
        self._decisions = decisions_of(space)
        self.forget()

    def forget(self) -> None:
        """Start from an empty history."""
        # It is told only when the sampler is asked, since its storage is slow.
        self._history = _History(self.objectives.directions, self._decisions)
        self._untold: list[Callable[[], None]] = []
        self._length = 0
        self._running: set[int] = set()
        self._read = 0
        self._has_told = False
        self._over: list[int] = []
        self._known: dict[str, int] = {}
        self._counted = 0
        self._refusals = 0
        self._baselines: set[int] = set()
        self._trained: set[int] = set()
        self._plans: dict[int, AttentionPlan] = {}
        self._losses: dict[int, TrialRecord] = {}
        self._stopped: dict[int, TrialRecord] = {}

    @property
    def counted(self) -> int:
        """Trials that were paid for, or are being."""
        return self._counted

    @property
    def has_baseline(self) -> bool:
        """Whether the baseline is trained, or is being."""
        return bool(self._baselines)

    @property
    def running(self) -> frozenset[int]:
        """Trials of the history that are not over."""
        return frozenset(self._running)

    @property
    def waits(self) -> bool:
        """Whether plans of the queue are left, but each starts from a trial that is not over."""
        return self.has_baseline and self._queued() is None and any(self._left())

    @property
    def awaited(self) -> frozenset[int]:
        """Of those, the ones without which the proposer's work is not done."""
        return self.running

    def update(self, trials: Sequence[TrialRecord], over: Sequence[int]) -> None:
        """Bring the history up to the record.

        Args:
            trials: All trials, by number.
            over: Numbers of those that are over; grows at its end only.
        """
        for trial in trials[self._length :]:
            self.add(trial)
        for number in over[self._read :]:
            self.close(trials[number])
        self._read = len(over)

    def add(self, trial: TrialRecord) -> None:
        """Add the next trial, as it was when it began; its number is the length of the history."""
        self._untold.append(partial(self._history.begin, trial))
        self._length += 1
        self._register(trial)

    def close(self, trial: TrialRecord) -> None:
        """Add the end of a trial."""
        self._running.discard(trial.number)
        self._over.append(trial.number)
        if trial.state == TrialState.FAIL:
            self._baselines.discard(trial.number)
        if trial.is_trained:
            self._trained.add(trial.number)
            if trial.duplicate_of is None:
                self._losses[trial.number] = trial
        elif was_stopped(trial.rungs):
            self._stopped[trial.number] = trial
        self._untold.append(partial(self._history.end, trial))

    def written(self) -> None:
        """The last proposal is on record, with what it was derived from."""
        self._has_told = True
        self._over.clear()

    def propose(self) -> Proposal | None:
        """The next plan; None if every plan of the space has been tried, or plans have to wait.

        What is proposed is not part of the history until the record has it (see `update`).
        """
        number = self._length
        plan: AttentionPlan
        params: Mapping[str, tuple[Any, BaseDistribution]] = {}
        system: Mapping[str, Any] = {}
        parent: int | None = None
        if not self._baselines:
            plan = self.baseline
            chosen = self.space.encode(plan)
            if chosen is not None:
                params = answers_of(self.space, chosen)
        elif (queued := self._queued()) is not None:
            plan, parent = queued
            chosen = self.space.encode(plan)
            params = {} if chosen is None else answers_of(self.space, chosen)
        elif self.waits:
            return None
        elif self._asks_optuna():
            plan, params, system = self._ask(number)
        else:
            found = self._known_cost(number) or self._spread()
            if found is None:
                return None
            plan, params = self.space.plan(found), answers_of(self.space, found)
        costs, certain = expected_costs(self.costs, plan)
        is_baseline = plan == self.baseline
        return Proposal(
            number=number,
            plan=plan,
            costs=costs,
            certain=certain,
            params=recorded_params(self._decisions, params),
            system=system,
            running=self._running_told(),
            over=tuple(self._over),
            duplicate_of=None if not self._baselines else self._known.get(plan.dumps()),
            excess=None if is_baseline else self._excess(plan),
            parent=parent,
        )

    def _left(self) -> Iterator[AttentionPlan]:
        """Plans of the queue that were not proposed yet."""
        return (plan for plan in self._queue if plan.dumps() not in self._known)

    def _queued(self) -> tuple[AttentionPlan, int | None] | None:
        """The first plan of those that may be begun, with the trial that it starts from if it has
        to be one."""
        for plan in self._left():
            if not self.config.warm_start.ladder:
                return plan, None
            parent = self._parent(plan)
            if parent is not None:
                return plan, parent
        return None

    def _parent(self, plan: AttentionPlan) -> int | None:
        """The trial that a plan starts from: of what it can start from, the nearest that did not
        fail. None as long as that is not known."""
        for ancestor in ancestors_of(plan, self._parents):
            if ancestor == self.baseline:
                return min(self._baselines & self._trained, default=None)
            number = self._known.get(ancestor.dumps())
            if number is None or number in self._running:
                return None
            if number in self._trained:
                return number
        return None

    @cached_property
    def _queue(self) -> list[AttentionPlan]:
        """The plans of the queue that keep all limits."""
        return [plan for plan in self.queue if self._excess(plan) is None]

    @cached_property
    def _parents(self) -> dict[AttentionPlan, AttentionPlan]:
        shapes = self.costs.shapes
        return parents_of(
            self._queue, self.baseline, self._axis, lambda one, two: plan_nests(one, two, shapes)
        )

    def _running_told(self) -> tuple[int, ...] | None:
        return None if self._has_told else tuple(sorted(self._running))

    def _axis(self, plan: AttentionPlan) -> float:
        return expected_costs(self.costs, plan)[0][self.objectives.primary_cost]

    @property
    def _starts(self) -> bool:
        return self._counted - 1 < self.config.startup_trials

    def _asks_optuna(self) -> bool:
        is_stuck = self._refusals >= MAX_REFUSALS
        return not (self._starts or is_stuck or self.config.sampler in OUR_SAMPLERS)

    def _ask(
        self, number: int
    ) -> tuple[AttentionPlan, dict[str, tuple[Any, BaseDistribution]], dict[str, Any]]:
        """Ask the sampler, on a trial that is taken away again."""
        for tell in self._untold:
            tell()
        self._untold.clear()
        study, history = self._history.study, self._history
        sampler = study.sampler = make_sampler(self.config, number)
        history.caches.clear()
        if isinstance(sampler, NSGAIISampler):
            # One after the other: asked for the last, it would go down all of them, each in a call.
            generation = 1
            while len(sampler.get_population(study, generation - 1)) >= (
                sampler.population_size or 0
            ):
                sampler.get_parent_population(study, generation)
                generation += 1
        trial = study.ask()
        chosen = [
            unit.choose(lambda decision: suggest(trial, decision)) for unit in self.space.units
        ]
        frozen = history.get_trial(trial._trial_id)
        params = {name: (frozen.params[name], frozen.distributions[name]) for name in frozen.params}
        history.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        return self.space.plan(chosen), params, dict(frozen.system_attrs)

    def _known_cost(self, number: int) -> tuple[Option, ...] | None:
        """What the losses so far let propose, where the sampler asks them."""
        if self._starts or self.config.sampler != "known_cost":
            return None
        return self.known_cost.propose(
            number,
            [self._losses[n] for n in sorted(self._losses)],
            [self._stopped[n] for n in sorted(self._stopped)],
            [self._plans[n] for n in sorted(self._running) if n in self._plans],
            lambda plan: plan.dumps() not in self._known and self._excess(plan) is None,
        )

    @cached_property
    def known_cost(self) -> KnownCostSearch:
        """What losses tell of plans that were not tried."""
        return KnownCostSearch(
            self._stratified,
            maximise=self.objectives.maximise,
            predicted=predicted_changes(self.space, self.baseline, self._predicted),
        )

    def _spread(self) -> tuple[Option, ...] | None:
        started = self._counted - 1
        return self._stratified.propose(
            started, self._known.keys(), lambda plan: self._excess(plan) is None
        )

    def _excess(self, plan: AttentionPlan) -> str | None:
        return certain_excess(self.costs, self.objectives, plan)

    def _register(self, trial: TrialRecord) -> None:
        self._running.add(trial.number)
        is_refusal = trial.duplicate_of is not None or trial.is_infeasible
        self._refusals = self._refusals + 1 if is_refusal else 0
        if trial.uses_budget and trial.plan is not None:
            self._counted += 1
            self._known.setdefault(trial.plan.dumps(), trial.number)
            self._plans[trial.number] = trial.plan
            if trial.is_baseline:
                self._baselines.add(trial.number)


class FixedCandidates(Proposer):
    """Proposes the plans of a list, each once; what failed when the search was run before is
    proposed again.

    Args:
        plans: Plans that are proposed.
        arguments: Arguments of `Proposer`.
    """

    def __init__(self, plans: Sequence[AttentionPlan], *arguments: Any) -> None:
        self.plans = list(plans)
        self._wanted = set(plans)
        super().__init__(*arguments)

    def forget(self) -> None:
        """Start from an empty history."""
        super().forget()
        self._listed: set[int] = set()

    def add(self, trial: TrialRecord) -> None:
        """Add the next trial, as it was when it began."""
        super().add(trial)
        if trial.plan in self._wanted:
            self._listed.add(trial.number)

    @property
    def awaited(self) -> frozenset[int]:
        """Running trials of the list; another driver may have others in the same study."""
        return self.running & self._listed

    def close(self, trial: TrialRecord) -> None:
        """Add the end of a trial."""
        super().close(trial)
        if trial.state == TrialState.FAIL and not self._has_told and trial.plan is not None:
            self._known.pop(trial.plan.dumps(), None)

    def propose(self) -> Proposal | None:
        """The next plan of the list; None at its end."""
        for plan in self.plans:
            if plan.dumps() not in self._known:
                costs, certain = expected_costs(self.costs, plan)
                return Proposal(
                    number=self._length,
                    plan=plan,
                    costs=costs,
                    certain=certain,
                    params={},
                    system={},
                    running=self._running_told(),
                    over=tuple(self._over),
                )
        return None
