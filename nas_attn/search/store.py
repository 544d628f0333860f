"""The record of a study: an Optuna study, and what we write on its trials.

The Optuna storage is the only record. Everything a search needs to go on, and all that a report
shows, is read back from it. A trial is written down in one step, with its plan, and it says which
number it was proposed for: of two drivers that propose at the same time one gets another number,
and anyone can see that its trial does not count.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas_attn.attention.counting import ModelSize, left_text
from nas_attn.errors import SearchError
from nas_attn.fairseq_tools.flags import without_idle
from nas_attn.pareto import non_dominated
from nas_attn.plan import AttentionPlan
from nas_attn.search.objectives import Objectives
from nas_attn.search.patience import patiently

logger = logging.getLogger(__name__)

PLAN, SIZE, BASELINE, COMMANDS, FOLDER = "plan", "parameters", "baseline", "commands", "folder"
LOSSES, SECONDS, REASON, DUPLICATE = "losses", "seconds", "reason", "duplicate_of"
THREADS, CERTAIN, PRUNED = "threads", "parameters_certain", "pruned_plans"
COSTS, PROPOSAL, DRIVER, FAILURE = "costs", "proposal", "driver", "failure"
ATTEMPTS, RUNGS, TESTS = "attempts", "rungs", "tests"
STARTS, WARM, UPDATES = "starts", "warm", "updates"

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial as the record tells it.

    Args:
        number: its number in the study.
        state: Optuna's state; PRUNED if it was stopped early or is over a limit.
        plan: the plan; None in records of old in which the driver died before it was planned.
        size: exact parameters; of what pruning left once the trial is complete, mean over seeds.
        costs: all that is known of what the plan costs, by name, parameters among the rest.
        certain: whether costs were known before training; not so if a vote decides what stays.
        pruned: what pruning made of the plan, for each seed.
        losses: best validation loss of each seed; empty unless complete.
        loss: mean of `losses`, the first objective; None unless complete.
        point: the objectives, each better when lower; None unless complete.
        cost: the cost that trials are spread over.
        effective: of `cost`, if it counts parameters, those that are neither dead nor redundant.
        seconds: training time.
        updates: of all its trainings; 0 in records of old.
        is_warm: whether it started from the trained baseline, converted.
        is_baseline: whether it is the multi-head baseline.
        duplicate_of: number of the trial whose result this proposal took over.
        is_withdrawn: another driver's proposal came first, so this one never ran.
        reason: why it failed or was stopped.
        failure: kind of the failure (see `nas_attn.trials.failures.FailureKind`).
        attempts: faults after which the trial was continued.
        rungs: what the stopping rule decided, by number of validations.
        curve: validation loss of the first seed by number of updates.
        tests: scores on the test side for each seed, if it was opened.
        commands: the fairseq-train command of each seed.
        starts: the command of each seed that makes what its training starts from, if there is one.
        threads: CPU threads of a training.
        folder: where its files are.
        driver: which driver created it.
        proposal: what it was proposed from (see `nas_attn.search.candidates`).
        params: the sampler's parameters.
        system: what the sampler keeps on the trial.
        values: the objectives as Optuna has them; None unless complete.
        started: when it was written down, in seconds since 1970.
        ended: when it was closed; None if it is not over.
    """

    number: int
    state: TrialState
    plan: AttentionPlan | None
    size: ModelSize | None
    costs: Mapping[str, float]
    certain: bool
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
    is_withdrawn: bool
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
    def is_refused(self) -> bool:
        """Proposed, but over a limit, so it was not trained."""
        return self.state == TrialState.PRUNED and not self.rungs and not self.folder

    @property
    def is_over_limit(self) -> bool:
        """Refused, or trained and over a limit by what pruning left of it."""
        return self.is_refused or (self.state == TrialState.PRUNED and bool(self.pruned))

    @property
    def was_stopped(self) -> bool:
        """Stopped early by the stopping rule."""
        return self.state == TrialState.PRUNED and not self.is_over_limit

    @property
    def counts(self) -> bool:
        """Whether the trial was paid for, or is being."""
        if self.plan is None or self.duplicate_of is not None:
            return False
        return not self.is_withdrawn and not self.is_refused


def read_trial(trial: FrozenTrial, objectives: Objectives) -> TrialRecord:
    """Read what we wrote on an Optuna trial.

    Args:
        trial: from a study's trials.
        objectives: of the study.
    """
    attrs = trial.user_attrs
    # Studies that began before effective parameters were counted go on without them.
    size = ModelSize(**{"effective": None, **attrs[SIZE]}) if SIZE in attrs else None
    costs = {**({} if size is None else size._asdict()), **attrs.get(COSTS, {})}
    axis = objectives.axis
    effective = size.acting(axis) if size is not None and axis in ModelSize._fields else None
    values = trial.values if trial.state == TrialState.COMPLETE else None
    proposal = attrs.get(PROPOSAL)
    return TrialRecord(
        number=trial.number,
        state=trial.state,
        plan=AttentionPlan.from_json(attrs[PLAN]) if PLAN in attrs else None,
        size=size,
        costs=costs,
        certain=attrs.get(CERTAIN, True),
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
        is_withdrawn=proposal is not None and proposal["number"] != trial.number,
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
        attributes: user attributes.
        params: the sampler's parameters and their distributions.
        system: what the sampler keeps on the trial.
        state: other than RUNNING if it is over as it begins.
        values: the objectives, if it is complete.
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


class Record:
    """A study in its storage.

    Every call waits for a storage that has gone away, such as a database that is started again.

    Args:
        name: of the study.
        storage: where it is kept.
        objectives: of the study.
        create: make the study if it is not there.

    Raises:
        SearchError: there is no such study and `create` is false.
    """

    def __init__(
        self, name: str, storage: BaseStorage, objectives: Objectives, *, create: bool = False
    ) -> None:
        self.name = name
        self.storage = storage
        self.objectives = objectives
        self._trials: list[TrialRecord] = []
        self._over: list[int] = []
        self._ids: list[int] = []
        self._open: set[int] = set()
        self._claims: int | None = None
        if create:
            self._study = self._make(name, objectives.directions)
        else:
            try:
                self._study = self._call(storage.get_study_id_from_name, name)
            except KeyError:
                raise SearchError(f"the record holds no study {name!r}; search it first") from None
        kept = self._call(storage.get_study_directions, self._study)
        if list(kept) != list(objectives.directions):
            raise SearchError(
                f"the study {name!r} on record has the directions {_words(kept)}, but the "
                f"objectives now want {_words(objectives.directions)}; give the study another name"
            )

    @property
    def known(self) -> Sequence[TrialRecord]:
        """All trials by number, as far as they were read, with what was written here.

        Of those that are not over, what is as it was when they began, apart from their rungs.
        """
        return self._trials

    @property
    def over(self) -> Sequence[int]:
        """Numbers of the known trials that are over, in the order in which that was seen."""
        return self._over

    def trials(self) -> Sequence[TrialRecord]:
        """Read what other drivers wrote; returns all trials (see `known`)."""
        frozen = self._call(self.storage.get_all_trials, self._study, deepcopy=False)
        for number in list(self._open):
            trial = frozen[number]
            if trial.state.is_finished():
                self._note_end(trial)
            elif len(trial.user_attrs.get(RUNGS, ())) != len(self._trials[number].rungs):
                rungs = dict(trial.user_attrs[RUNGS])
                self._trials[number] = replace(self._trials[number], rungs=rungs)
        for trial in frozen[len(self._trials) :]:
            self._note_begin(trial)
        return self._trials

    def now(self, number: int) -> TrialRecord:
        """A trial with all that is on record, over or not."""
        frozen = self._call(self.storage.get_trial, self._id(number))
        return read_trial(frozen, self.objectives)

    def create(self, trial: NewTrial) -> int:
        """Write a trial down, in one step; returns its number."""
        made = self._call(self.storage.create_new_trial, self._study, trial.frozen())
        number: int = self._call(self.storage.get_trial_number_from_id, made)
        if number == len(self._trials):
            self._note_begin(self._call(self.storage.get_trial, made))
        else:
            self.trials()
        return number

    def annotate(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Write user attributes on a trial that is not over."""
        for name, value in attributes.items():
            self._write(number, self.storage.set_trial_user_attr, name, value)

    def validated(self, number: int, updates: int, loss: float) -> None:
        """Write down a validation of a running trial."""
        self._write(number, self.storage.set_trial_intermediate_value, updates, loss)

    def complete(self, number: int, loss: float, costs: Mapping[str, float]) -> None:
        """Close a running trial with its objectives."""
        values = [loss, *(float(costs[name]) for name in self.objectives.costs)]
        self._close(number, TrialState.COMPLETE, values)

    def stop(self, number: int, reason: str) -> None:
        """Close a running trial that was stopped early."""
        self.annotate(number, {REASON: reason})
        self._close(number, TrialState.PRUNED)

    def fail(self, number: int, reason: str, kind: str | None = None) -> None:
        """Close a running trial that has no result."""
        self.annotate(number, {REASON: reason, **({} if kind is None else {FAILURE: kind})})
        self._close(number, TrialState.FAIL)

    def note(self, name: str, value: Any) -> None:
        """Keep a fact about the search, such as versions; the last one stays."""
        self._call(self.storage.set_study_user_attr, self._study, name, value)

    def notes(self) -> dict[str, Any]:
        """What `note` kept."""
        notes: dict[str, Any] = self._call(self.storage.get_study_user_attrs, self._study)
        return notes

    def settings(self) -> dict[str, Any]:
        """The settings that the study was started with."""
        settings: dict[str, Any] = self.notes().get("settings", {})
        objectives = settings.get("objectives", {})
        if "parameters" in objectives:  # as it was written before there were other costs
            now = {"loss": objectives["loss"], "costs": [objectives["parameters"]]}
            settings = {**settings, "objectives": now}
        return settings

    def keep_settings(self, settings: Mapping[str, Any]) -> None:
        """Write the settings down at the first start; later they must be the same.

        Raises:
            SearchError: the study was started with others; names what differs.
        """
        kept = self.settings()
        if not kept:
            self.note("settings", dict(settings))
            return
        different = sorted(differences(_without_idle(kept), _without_idle(settings)))
        if different:
            raise SearchError(
                "the study on record was started with other settings, so old and new trials could "
                f"not be compared: {', '.join(different)}. Restore them, or give the study "
                "another name."
            )

    def beside(self) -> list[tuple[str, list[TrialState], dict[str, Any]]]:
        """What else is on record for this study, such as its confirmation.

        Returns:
            What it is, the states of its trials, and what `note` kept there.
        """
        found = []
        for study in self._call(self.storage.get_all_studies):
            name = study.study_name
            if name.startswith(f"{self.name} (") and name != self._claims_name:
                trials = self._call(self.storage.get_all_trials, study._study_id, deepcopy=False)
                what = name.removeprefix(f"{self.name} (").removesuffix(")")
                found.append((what, [trial.state for trial in trials], dict(study.user_attrs)))
        return found

    def claims(self) -> list[dict[str, Any]]:
        """Which drivers took over which trials, in the order in which they did."""
        if self._claims is None:
            try:
                self._claims = self._call(self.storage.get_study_id_from_name, self._claims_name)
            except KeyError:
                return []
        found = self._call(self.storage.get_all_trials, self._claims, deepcopy=False)
        return [dict(claim.user_attrs) for claim in found]

    def claim(self, attributes: Mapping[str, Any]) -> None:
        """Add a claim; the storage gives all claims one order, so the first of several wins."""
        if self._claims is None:
            self._claims = self._make(self._claims_name, [StudyDirection.MINIMIZE])
        ticket = NewTrial(attributes=attributes, state=TrialState.FAIL)
        self._call(self.storage.create_new_trial, self._claims, ticket.frozen())

    @property
    def _claims_name(self) -> str:
        # Names of studies hold no spaces, so this can be no other study's.
        return f"{self.name} (claims)"

    def _make(self, name: str, directions: Sequence[StudyDirection]) -> int:
        try:
            made: int = self._call(self.storage.create_new_study, directions, name)
        except DuplicatedStudyError:
            made = self._call(self.storage.get_study_id_from_name, name)
        return made

    def _note_begin(self, trial: FrozenTrial) -> None:
        self._trials.append(read_trial(trial, self.objectives))
        self._ids.append(trial._trial_id)
        if trial.state.is_finished():
            self._over.append(trial.number)
        else:
            self._open.add(trial.number)

    def _note_end(self, trial: FrozenTrial) -> None:
        if trial.number in self._open:
            self._open.discard(trial.number)
            self._over.append(trial.number)
            self._trials[trial.number] = read_trial(trial, self.objectives)

    def _id(self, number: int) -> int:
        if number >= len(self._ids):
            self.trials()
        return self._ids[number]

    def _close(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        self._write(number, self.storage.set_trial_state_values, state, values)
        self._note_end(self._call(self.storage.get_trial, self._id(number)))

    def _write(self, number: int, function: Callable[..., Any], *args: Any) -> None:
        try:
            self._call(function, self._id(number), *args)
        except UpdateFinishedTrialError:
            # Written before the storage went away, or by the driver that took the trial over.
            logger.warning("trial %d was closed already", number)

    def _call(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        return patiently(function, *args, **kwargs)


def _words(directions: Sequence[StudyDirection]) -> str:
    return ", ".join(direction.name.lower() for direction in directions)


def differences(left: Any, right: Any, key: str = "") -> list[str]:
    """What differs between settings on record and those of now, by key path, in words."""
    if isinstance(left, dict) and isinstance(right, Mapping):
        return [
            found
            for name in {*left, *right}
            for found in differences(
                left.get(name), right.get(name), f"{key}.{name}" if key else name
            )
        ]
    return [] if _are_same(left, right) else [f"{key} ({left!r}, now {right!r})"]


def _without_idle(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without flags that earlier versions took and that change no loss."""
    training = settings.get("training", {})
    if not isinstance(training.get("arguments"), Mapping):
        return dict(settings)
    return {**settings, "training": {**training, "arguments": without_idle(training["arguments"])}}


def _are_same(left: Any, right: Any) -> bool:
    """Whether two settings are one; older records hold numbers such as 1e-3 as words."""
    if isinstance(left, str) and isinstance(right, int | float) and not isinstance(right, bool):
        try:
            return float(left) == right
        except ValueError:
            return False
    return bool(left == right)
