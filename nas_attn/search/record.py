"""The record of a study: an Optuna study, and what we write on its trials.

The Optuna storage is the only record. Everything a search needs to go on, and all that a report
shows, is read back from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from nas_attn.attention.counting import ModelSize
from nas_attn.errors import SearchError
from nas_attn.pareto import non_dominated
from nas_attn.plan import AttentionPlan

JOURNAL = "journal.log"

PLAN, SIZE, BASELINE, COMMANDS, FOLDER = "plan", "parameters", "baseline", "commands", "folder"
LOSSES, SECONDS, REASON, DUPLICATE = "losses", "seconds", "reason", "duplicate_of"
THREADS, CERTAIN, PRUNED = "threads", "parameters_certain", "pruned_plans"


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial as the record tells it.

    Args:
        number: its number in the study.
        state: Optuna's state.
        plan: the plan; None if the driver died before it was planned.
        size: exact parameters; of what pruning left once the trial is complete, mean over seeds.
        certain: whether `size` was known before training; not so if a vote decides what stays.
        pruned: what pruning made of the plan, for each seed.
        parameters: the one of `size` that is an objective.
        effective: those of `parameters` that are neither dead nor redundant.
        losses: best validation loss of each seed; empty unless complete.
        loss: mean of `losses`, the objective; None unless complete.
        seconds: training time.
        is_baseline: whether it is the multi-head baseline.
        duplicate_of: number of the trial whose result this proposal took over.
        reason: why it failed.
        commands: the fairseq-train command of each seed.
        threads: CPU threads of a training.
        folder: where its files are.
    """

    number: int
    state: TrialState
    plan: AttentionPlan | None
    size: ModelSize | None
    certain: bool
    pruned: tuple[AttentionPlan, ...]
    parameters: int | None
    effective: int | None
    losses: tuple[float, ...]
    loss: float | None
    seconds: float
    is_baseline: bool
    duplicate_of: int | None
    reason: str | None
    commands: tuple[tuple[str, ...], ...]
    threads: int
    folder: str | None

    @property
    def text(self) -> str:
        """The plan in words, with what pruning left of it, layer by layer, if there was any."""
        if self.plan is None or not self.pruned:
            return "" if self.plan is None else str(self.plan)
        left = []
        for site, choices in self.pruned[0]:
            parts = [dict(choice.options) for choice in choices]
            counts = [str(part.get("kept_heads", part.get("shared_dim", ""))) for part in parts]
            left.append(f"{site} {'+'.join(counts)}")
        seed = " (first seed)" if len(set(self.pruned)) > 1 else ""
        return f"{self.plan}; left{seed}: {', '.join(left)}"

    @property
    def is_complete(self) -> bool:
        return self.state == TrialState.COMPLETE

    @property
    def is_trained(self) -> bool:
        """Complete by its own training."""
        return self.is_complete and self.duplicate_of is None

    @property
    def counts(self) -> bool:
        """Whether the trial was paid for, or is being."""
        return self.plan is not None and self.duplicate_of is None


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Open an Optuna storage: a URL, or the journal file of a run folder.

    Raises:
        SearchError: the storage cannot be reached; the message is the database's.
    """
    try:
        if url is None:
            folder.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        return optuna.storages.get_storage(url)
    except Exception as error:  # database drivers raise their own kinds
        raise SearchError(f"cannot open the storage {url or folder / JOURNAL}: {error}") from error


def read_trial(trial: FrozenTrial, objective: str) -> TrialRecord:
    """Read what we wrote on an Optuna trial.

    Args:
        trial: from a study's trials.
        objective: which parameters are the second objective.
    """
    attrs = trial.user_attrs
    # Studies that began before effective parameters were counted go on without them.
    size = ModelSize(**{"effective": None, **attrs[SIZE]}) if SIZE in attrs else None
    return TrialRecord(
        number=trial.number,
        state=trial.state,
        plan=AttentionPlan.from_json(attrs[PLAN]) if PLAN in attrs else None,
        size=size,
        certain=attrs.get(CERTAIN, True),
        pruned=tuple(AttentionPlan.from_json(plan) for plan in attrs.get(PRUNED, ())),
        parameters=None if size is None else getattr(size, objective),
        effective=None if size is None else size.acting(objective),
        losses=tuple(attrs.get(LOSSES, ())),
        loss=trial.values[0] if trial.state == TrialState.COMPLETE else None,
        seconds=float(attrs.get(SECONDS, 0.0)),
        is_baseline=bool(attrs.get(BASELINE, False)),
        duplicate_of=attrs.get(DUPLICATE),
        reason=attrs.get(REASON),
        commands=tuple(tuple(command) for command in attrs.get(COMMANDS, ())),
        threads=attrs.get(THREADS, 1),
        folder=attrs.get(FOLDER),
    )


def front(trials: list[TrialRecord]) -> list[TrialRecord]:
    """The trained trials that no other dominates, from small to large."""
    trained = [trial for trial in trials if trial.is_trained]
    points = [(float(t.parameters or 0), t.loss or 0.0) for t in trained]
    chosen = [trained[index] for index in non_dominated(points)]
    return sorted(chosen, key=lambda trial: trial.parameters or 0)


class Record:
    """A study in its storage.

    Args:
        name: of the study.
        storage: where it is kept.
        objective: which parameters are the second objective.
        create: make the study if it is not there.

    Raises:
        SearchError: there is no such study and `create` is false.
    """

    def __init__(
        self, name: str, storage: BaseStorage, objective: str, *, create: bool = False
    ) -> None:
        self.objective = objective
        if create:
            self.study = optuna.create_study(
                study_name=name,
                storage=storage,
                directions=["minimize", "minimize"],
                load_if_exists=True,
            )
        else:
            try:
                self.study = optuna.load_study(study_name=name, storage=storage)
            except KeyError:
                raise SearchError(f"the record holds no study {name!r}; search it first") from None

    def trials(self) -> list[TrialRecord]:
        """All trials, in the order of their numbers."""
        return [
            read_trial(trial, self.objective) for trial in self.study.get_trials(deepcopy=False)
        ]

    def note(self, name: str, value: Any) -> None:
        """Keep a fact about the search, such as versions; the last one stays."""
        self.study.set_user_attr(name, value)

    def notes(self) -> dict[str, Any]:
        """What `note` kept."""
        notes: dict[str, Any] = self.study.user_attrs
        return notes

    def settings(self) -> dict[str, Any]:
        """The settings that the study was started with."""
        settings: dict[str, Any] = self.study.user_attrs.get("settings", {})
        return settings

    def keep_settings(self, settings: Mapping[str, Any]) -> None:
        """Write the settings down at the first start; later they must be the same.

        Raises:
            SearchError: the study was started with others; names what differs.
        """
        kept = self.settings()
        if not kept:
            self.study.set_user_attr("settings", dict(settings))
            return
        different = sorted(_differences(kept, settings))
        if different:
            raise SearchError(
                "the study on record was started with other settings, so old and new trials could "
                f"not be compared: {', '.join(different)}. Restore them, or give the study "
                "another name."
            )

    def annotate(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Write user attributes on a running trial."""
        frozen = self.study.get_trials(deepcopy=False)[number]
        trial = optuna.Trial(self.study, frozen._trial_id)
        for name, value in attributes.items():
            trial.set_user_attr(name, value)

    def complete(self, number: int, loss: float, parameters: int) -> None:
        """Close a running trial with its two objectives."""
        self.study.tell(number, [loss, float(parameters)])

    def fail(self, number: int, reason: str) -> None:
        """Close a running trial that has no result."""
        self.annotate(number, {REASON: reason})
        self.study.tell(number, state=TrialState.FAIL)


def _differences(left: Any, right: Any, key: str = "") -> list[str]:
    if isinstance(left, dict) and isinstance(right, Mapping):
        return [
            found
            for name in {*left, *right}
            for found in _differences(
                left.get(name), right.get(name), f"{key}.{name}" if key else name
            )
        ]
    return [] if left == right else [f"{key} ({left!r}, now {right!r})"]
