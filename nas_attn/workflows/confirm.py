"""Confirm: the front's points and the baseline again, with fresh seeds, on the test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas_attn.engine.loop import SearchLoop
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord, front
from nas_attn.engine.wording import Wording
from nas_attn.errors import ConfigError, NasAttnError, UsageError
from nas_attn.fairseq_tools.splits import check_split
from nas_attn.plan import AttentionPlan
from nas_attn.report.tables import write_rows
from nas_attn.study.checks import check_plan
from nas_attn.study.study import Study
from nas_attn.workflows.defaults import SEEDS
from nas_attn.workflows.events import Events
from nas_attn.workflows.reporting import (
    CONFIRMED,
    NothingToReportError,
    confirmation_store,
    confirmed_rows,
    write_study_report,
)
from nas_attn.workflows.session import Session

LEAST_SEEDS = 2


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """What trainings with fresh seeds gave.

    Args:
        rows: Rows, one for each plan and score: the columns of confirmed.csv.
        failed: Trainings without a result, each with the number of the search's trial.
        page: The study's report, written again; confirmed.csv where the search has trained nothing,
            and None where that holds nothing either.
        failure: Reason why it ended early; None if it did not.
    """

    rows: Sequence[Mapping[str, Any]]
    failed: Sequence[TrialRecord]
    page: Path | None
    failure: NasAttnError | None


def confirm(
    study: Study,
    *,
    seeds: int = SEEDS,
    trials: Sequence[int] = (),
    plans: Sequence[AttentionPlan] = (),
    address: str | None = None,
    events: Events | None = None,
) -> Confirmation:
    """Train points of the front again with fresh seeds, and evaluate them on the test set.

    Args:
        study: Study that was searched.
        seeds: Trainings of each point, with seeds that the search did not use.
        trials: Numbers of trials to confirm.
        plans: Plans to confirm, which no search need have trained; what they leave out is
            multi-head attention. Without trials and plans, the front is confirmed.
        address: Address of a running Ray cluster.
        events: Object that is called with the progress; logs it if left out.

    Raises:
        UsageError: Of fewer than two seeds there is no mean with an error.
        ConfigError: A plan cannot be trained: it does not fit the model, or lacks a criterion.
        NasAttnError: A search is needed and no trial of it is complete, one that is asked for has
            no result, or there is no test set.
    """
    if seeds < LEAST_SEEDS:
        raise UsageError(f"confirm with {LEAST_SEEDS} seeds or more: one says nothing of its noise")
    given = [_fitting(study, plan) for plan in plans]
    is_free = bool(plans) and not trials  # of what a search has found
    opened = Session.begin if is_free else Session.resume
    session = opened(study, address=address, events=events)
    store = session.store
    points = [] if is_free else _points(store.trials(), trials)
    plans = [point.plan for point in points if point.plan is not None] + given
    fresh = _fresh_seeds(study.config.training.seeds, seeds)
    if study.config.replay is None:
        examples = check_split(study.data_set, "test")
        session.events.on_message(f"the test set has {examples:,} examples")
    store.set_metadata(CONFIRMED, seeds)
    confirmed = confirmation_store(study, store, seeds, create=True)
    session.events.on_message(_start_text(store, points, given, fresh))
    loop = session.run_plans(
        [study.baseline, *plans],
        store=confirmed,
        build_job=lambda number, plan, _: study.jobs.confirmation(number, plan, fresh),
        title=f"{store.name}, confirmed",
        wording=Wording("confirmation"),
    )
    rows = confirmed_rows(study, store)
    return Confirmation(
        rows=rows,
        failed=failed_by_trial(confirmed.trials(), store.trials()),
        page=_write_report(study, store, rows),
        failure=_failure_of(loop),
    )


def _failure_of(loop: SearchLoop) -> NasAttnError | None:
    try:
        loop.outcome()
    except NasAttnError as error:
        return error
    return None


def _write_report(
    study: Study, store: TrialStore, rows: Sequence[Mapping[str, Any]]
) -> Path | None:
    """The report, or where the search has trained nothing, the table of what was confirmed."""
    folder = study.folder / "report"
    try:
        return write_study_report(study, store, folder)
    except NothingToReportError:
        if not rows:
            return None
        folder.mkdir(exist_ok=True)
        write_rows(rows, folder / "confirmed.csv")
        return folder / "confirmed.csv"


def _start_text(
    store: TrialStore,
    points: Sequence[TrialRecord],
    given: Sequence[AttentionPlan],
    seeds: Sequence[int],
) -> str:
    """What is about to be trained, in words."""
    baselines = (trial for trial in store.trials() if trial.is_baseline and trial.is_trained)
    chosen = {point.number for point in (*points, *baselines)}
    searched = f"trials {', '.join(map(str, sorted(chosen)))} of the search"
    named = searched if chosen else "the baseline"
    and_given = f" and {len(given)} given plan{'s' * (len(given) > 1)}" if given else ""
    again = " again" if chosen else ""
    return f"{named}{and_given}, each trained{again} with seeds {', '.join(map(str, seeds))}"


def failed_by_trial(
    confirmed: Sequence[TrialRecord], searched: Sequence[TrialRecord]
) -> list[TrialRecord]:
    """What failed, by the numbers that the search's trials of the same plans have."""
    numbers = {trial.plan: trial.number for trial in searched if trial.is_trained}
    return [
        replace(trial, number=numbers.get(trial.plan, trial.number))
        for trial in confirmed
        if trial.failure is not None
    ]


def _points(trials: Sequence[TrialRecord], numbers: Sequence[int]) -> Sequence[TrialRecord]:
    trained = {trial.number: trial for trial in trials if trial.is_trained}
    for number in numbers:
        if number not in trained:
            raise NasAttnError(f"trial {number} has no result of its own, so it is not confirmed")
    points = [trained[number] for number in numbers] if numbers else front(list(trials))
    if not any(point.plan is not None for point in points):
        raise NasAttnError("no trial is complete yet, so there is nothing to confirm")
    return points


def _fitting(study: Study, plan: AttentionPlan) -> AttentionPlan:
    """A plan for all sites, which can be trained from scratch."""
    whole = plan.over(study.baseline)
    faults = check_plan(study.config, whole, study.space.shapes)
    if faults:
        raise ConfigError(f"the plan {plan}", faults)
    return whole


def _fresh_seeds(used: Sequence[int], count: int) -> list[int]:
    """Seeds that the search did not use."""
    first = max(used) + 1
    return list(range(first, first + count))
