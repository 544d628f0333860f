"""Predict a front from one trained baseline: measure single conversions, test, and combine."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nas_attn.analysis.predictions import PlanConstraints, Predictions
from nas_attn.analysis.sensitivity import SensitivityFindings
from nas_attn.engine.config import ExecutionConfig
from nas_attn.errors import NasAttnError
from nas_attn.plan import AttentionPlan
from nas_attn.report.sensitivity import write_findings
from nas_attn.study.same_data import keep_data
from nas_attn.study.sensitivity import (
    SensitivityTarget,
    plain_name,
    target_of_checkpoint,
    target_of_study,
)
from nas_attn.study.settings import keep_settings
from nas_attn.study.spaces import space_folder, space_over
from nas_attn.study.study import Study
from nas_attn.workflows.events import Events, LogEvents
from nas_attn.workflows.session import Session, Trainer, open_store
from nas_attn.workflows.votes import calibration_of, hold_on_baseline

CHECKS, POINTS = 40, 8
"""Plans that test predictions, and that are recommended."""
NO_LIMITS = PlanConstraints()
NOTHING_INHERITS = "no choice of the space can take over what the baseline has learned"


@dataclass(frozen=True, kw_only=True)
class PredictedFront:
    """What was measured and what follows.

    Args:
        findings: Changes, predicted front, checks and verdict.
        folder: Folder of tables and figures.
    """

    findings: SensitivityFindings
    folder: Path


def target_session(
    study: Study,
    space: str | None = None,
    *,
    address: str | None,
    events: Events | None,
    distil: bool = False,
) -> Trainer:
    """A study's baseline, trained if need be, as what is measured, perhaps over another space."""
    if study.config.replay is not None:
        raise NasAttnError("replayed learning curves leave no model that could be converted")
    other = None if space is None else space_over(space, study.space.shapes)  # refused early
    session = Session.begin(study, address=address, events=events)
    checkpoint = study.trained_checkpoint(session.train_baseline())
    target = target_of_study(study, checkpoint, other, distil=distil)
    return Trainer(target, session.store, address, session.events)


def checkpoint_session(
    checkpoint: Path,
    data: Path,
    space: str | None = None,
    *,
    cost: str,
    workers: int | None,
    runs: Path,
    address: str | None,
    events: Events | None,
    distil: bool = False,
) -> Trainer:
    """A trained checkpoint, without a study, as what is measured.

    Args:
        checkpoint: Checkpoint of a training with fairseq or with the plugin.
        data: Folder of its binarised data set.
        space: Shipped name or file of a search space; `inherited_voted_per_layer` if left out.
        cost: Name of the cost that plans are to save.
        workers: Plans at a time.
        runs: Folder that holds run folders.
        address: Address of a running Ray cluster; measurements run there.
        events: Object that is called with the progress.
        distil: Whether converted modules are trained alone before they are measured.
    """
    target = target_of_checkpoint(
        checkpoint,
        data,
        space or "inherited_voted_per_layer",
        cost=cost,
        runs=runs,
        execution=ExecutionConfig(executor="local" if address is None else "ray", workers=workers),
        distil=distil,
    )
    # Earlier versions gave every checkpoint of a folder's name the same run folder.
    earlier = replace(target, name=plain_name(checkpoint))
    with contextlib.suppress(NasAttnError):
        if open_store(earlier).settings() == target.settings:
            target = earlier
    store = open_store(target, create=True)
    keep_settings(store, target.settings)
    keep_data(store, target.data)
    return Trainer(target, store, address, events or LogEvents())


def predict_front(
    trainer: Trainer,
    *,
    space: str | None = None,
    cost: str | None = None,
    checks: int = CHECKS,
    points: int = POINTS,
    limits: PlanConstraints = NO_LIMITS,
) -> PredictedFront:
    """Measure single conversions of a trained model, test what they predict, and write it.

    Args:
        trainer: Trainer of a sensitivity target.
        space: Name of a space other than the study's; files go to a folder named after it.
        cost: Name of the cost that plans are to save; the target's first cost if left out.
        checks: Plans that test predictions, half of them random and half predicted.
        points: Plans that are recommended.
        limits: Constraints on the plans.

    Raises:
        NasAttnError: Nothing can inherit, or nothing could be measured.
    """
    assert isinstance(trainer.subject, SensitivityTarget)
    hold_on_baseline(trainer, trainer.subject)
    predictions = Predictions(trainer.subject, trainer.store, axis=cost, create=True)
    predictions.check_counted(*limits.further)
    measure_predictions(trainer, predictions, limits=limits, checks=checks)
    findings = predictions.findings(limits, points)
    if not findings.front:
        raise NasAttnError("no plan within these limits can inherit from the baseline everywhere")
    if not findings.changes:
        raise NasAttnError("no single change could be measured; nas-attn status says why")
    folder = trainer.subject.measurements
    if space is not None:
        folder /= space_folder(space)  # what another space gave stays
    write_findings(findings, folder)
    return PredictedFront(findings=findings, folder=folder)


def measure_predictions(
    trainer: Trainer, predictions: Predictions, *, limits: PlanConstraints, checks: int = CHECKS
) -> None:
    """Measure single changes of a trained model, and then plans that test what they predict."""
    target, events = predictions.target, trainer.events
    if not predictions.changes:
        raise NasAttnError(
            f"{NOTHING_INHERITS}, so there is nothing to measure: take another space, such as "
            "inherited_per_layer"
        )
    calibration = calibration_of(target, events)
    # Votes may come to the same heads.
    singles = list(dict.fromkeys(change.plan for change in predictions.changes))
    events.on_message(
        f"{len(singles)} single changes of {len(target.space.units)} units are "
        f"measured; {predictions.left_out} choices are the baseline's own, or cannot inherit and "
        "need training"
    )

    def measure(plans: Sequence[AttentionPlan], title: str) -> None:
        loop = Trainer(target, predictions.store, trainer.address, events).run_plans(
            plans,
            build_job=lambda number, plan, _: target.build_measurement(number, plan, calibration),
            title=f"{target.name}, {title}",
        )
        for trial in predictions.store.trials():
            if trial.failure is not None:
                events.on_failure(trial)
        loop.outcome()

    measure(singles, "single changes")
    tests = predictions.tests(checks, limits)
    if tests:
        measure(tests, "tests of predictions")
