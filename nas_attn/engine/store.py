"""The record of a study: an Optuna study, read and written.

The Optuna storage is the only record. Everything a search needs to go on, and all that a report
shows, is read back from it. A trial is written down in one step, with its plan, and it says which
number it was proposed for: of two drivers that propose at the same time one gets another number,
and anyone can see that its trial does not count.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import optuna
from optuna.exceptions import (
    DuplicatedStudyError,
    ExperimentalWarning,
    UpdateFinishedTrialError,
)
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas_attn.engine.migrations import settings_on_record
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.patience import patiently
from nas_attn.engine.trial_record import FAILURE, REASON, RUNGS, NewTrial, TrialRecord, parse_trial
from nas_attn.errors import SearchError

logger = logging.getLogger(__name__)

SETTINGS = "settings"
"""Under this name the record keeps the settings that the study was started with."""

Result = TypeVar("Result")


class TrialStore:
    """A study in its storage.

    Every call waits for a storage that has gone away, such as a database that is started again.

    Args:
        name: Name of the study.
        storage: Optuna storage of the study.
        objectives: Objectives of the study.
        create: Whether the study is made if it is not there.

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
            self._call(self._name_metrics)
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
    def cached(self) -> Sequence[TrialRecord]:
        """All trials by number, as far as they were read, with what was written here.

        Of those that are not over, what is as it was when they began, apart from their rungs.
        """
        return self._trials

    @property
    def finished_numbers(self) -> Sequence[int]:
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

    def refresh(self, number: int) -> TrialRecord:
        """A trial with all that is on record, over or not."""
        frozen = self._call(self.storage.get_trial, self._id(number))
        return parse_trial(frozen, self.objectives)

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

    def set_metadata(self, name: str, value: Any) -> None:
        """Keep a fact about the search, such as versions; the last one stays."""
        self._call(self.storage.set_study_user_attr, self._study, name, value)

    def metadata(self) -> dict[str, Any]:
        """What `set_metadata` kept."""
        metadata: dict[str, Any] = self._call(self.storage.get_study_user_attrs, self._study)
        return metadata

    def settings(self) -> dict[str, Any]:
        """The settings that the study was started with; none before they are noted."""
        return settings_on_record(self.metadata().get(SETTINGS, {}))

    def children(self) -> list[tuple[str, list[TrialState], dict[str, Any]]]:
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

    def has_child(self, name: str) -> bool:
        """Whether a study that belongs to this one is on record.

        Args:
            name: Its whole name.
        """
        studies = self._call(self.storage.get_all_studies)
        return any(study.study_name == name for study in studies)

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

    def _name_metrics(self) -> None:
        """Let Optuna's plots and its dashboard name what is weighed."""
        study = optuna.load_study(study_name=self.name, storage=self.storage)
        if study.metric_names is None and len(study.directions) == 1 + len(self.objectives.costs):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names([self.objectives.metric, *self.objectives.costs])

    def _note_begin(self, trial: FrozenTrial) -> None:
        self._trials.append(parse_trial(trial, self.objectives))
        self._ids.append(trial._trial_id)
        if trial.state.is_finished():
            self._over.append(trial.number)
        else:
            self._open.add(trial.number)

    def _note_end(self, trial: FrozenTrial) -> None:
        if trial.number in self._open:
            self._open.discard(trial.number)
            self._over.append(trial.number)
            self._trials[trial.number] = parse_trial(trial, self.objectives)

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
