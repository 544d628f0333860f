"""The trials of a study as one collection: baseline, front, and tables for pandas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

from nas_attn.analysis.noise import Noise
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord, front
from nas_attn.study.moved import folder_today

if TYPE_CHECKING:
    import pandas as pd


class Trials(Sequence[TrialRecord]):
    """The trials of a study, by number, with the objectives that they are weighed by.

    Args:
        trials: Trials of the study.
        objectives: Objectives of the study.
    """

    def __init__(self, trials: Iterable[TrialRecord], objectives: Objectives) -> None:
        self._trials = tuple(trials)
        self.objectives = objectives

    @classmethod
    def of(cls, store: TrialStore, folder: Path) -> Trials:
        """Read all trials of a study, with the folders in which their files are today.

        Args:
            store: Trials of the study.
            folder: Run folder of the study, which may have been moved since.
        """
        return cls((_located(trial, folder) for trial in store.trials()), store.objectives)

    @overload
    def __getitem__(self, place: int) -> TrialRecord: ...
    @overload
    def __getitem__(self, place: slice) -> Trials: ...
    def __getitem__(self, place: int | slice) -> TrialRecord | Trials:
        if isinstance(place, slice):
            return Trials(self._trials[place], self.objectives)
        return self._trials[place]

    def __len__(self) -> int:
        return len(self._trials)

    @cached_property
    def trained(self) -> Trials:
        """The trials that are complete by a training of their own."""
        return Trials((trial for trial in self if trial.is_trained), self.objectives)

    @cached_property
    def baseline(self) -> TrialRecord | None:
        """The trained multi-head baseline; None if it is not trained."""
        return next((trial for trial in self.trained if trial.is_baseline), None)

    @cached_property
    def front(self) -> Trials:
        """The trained trials that no other dominates, from small to large."""
        return Trials(front(self), self.objectives)

    @cached_property
    def noise(self) -> Noise | None:
        """The noise of training; None where no trial has several seeds."""
        return Noise.of(self)

    def to_frame(self) -> pd.DataFrame:
        """All trials, a row each, with the columns of trials.csv."""
        return self._frame.copy()

    def front_frame(self) -> pd.DataFrame:
        """The front, what is within its noise, and the baseline, with the columns of front.csv."""
        return self._front_frame.copy()

    @cached_property
    def _frame(self) -> pd.DataFrame:
        from nas_attn.analysis.front import trials_table  # imports pandas

        return trials_table(self)

    @cached_property
    def _front_frame(self) -> pd.DataFrame:
        from nas_attn.analysis.front import front_table  # imports pandas

        return front_table(self, self.objectives)


def _located(trial: TrialRecord, run: Path) -> TrialRecord:
    """A trial with the folder that holds its files today."""
    if trial.folder is None:
        return trial
    return replace(trial, folder=str(folder_today(trial.folder, run)))
