"""Predict a front from one trained baseline: measure single conversions, test, and combine."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nas_attn.analysis.predictions import PlanConstraints, Predictions
from nas_attn.analysis.sensitivity import SensitivityFindings
from nas_attn.engine.config import ExecutionConfig
from nas_attn.engine.decoding import DECODING
from nas_attn.engine.scores import keep_scores, scores_of
from nas_attn.engine.sensitivity import Measured, Prediction
from nas_attn.engine.wording import Wording
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.fairseq_tools.measure import CHANGE, METRIC, load_calibration, score_plans
from nas_attn.measures import FurtherMetric, Scores
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
from nas_attn.workflows.decoding import time_models, time_modules, translate
from nas_attn.workflows.defaults import CHECKS, LEAST_MEASURED, PART_MEASURED, POINTS
from nas_attn.workflows.events import Events, LogEvents
from nas_attn.workflows.records import open_store
from nas_attn.workflows.session import Session, Trainer
from nas_attn.workflows.votes import calibration_of, hold_on_baseline

ROUNDS = 2
"""Times that it is looked at what decides the loss of recommended plans, and measured."""
SINGLE_CHANGES = "single changes"
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


def data_of_checkpoint(data: str | Path | None, overrides: Collection[str]) -> Path:
    """The data set that a checkpoint is measured on.

    Raises:
        NasAttnError: There is none, or what goes with studies alone was given.
    """
    if data is None:
        raise NasAttnError(
            "name the data set to measure the checkpoint on with --data DATA (data= in Python)"
        )
    if overrides:
        raise NasAttnError("--set (overrides= in Python) changes studies, but this is a checkpoint")
    return Path(data)


def predict_front(
    trainer: Trainer,
    *,
    space: str | None = None,
    cost: str | None = None,
    checks: int = CHECKS,
    points: int = POINTS,
    limits: PlanConstraints = NO_LIMITS,
    scores: Scores | None = None,
    improve: int = 0,
    metric: FurtherMetric | None = None,
) -> PredictedFront:
    """Measure single conversions of a trained model, test what they predict, and write it.

    Args:
        trainer: Trainer of a sensitivity target.
        space: Name of a space other than the study's; files go to a folder named after it.
        cost: Name of the cost that plans are to save; the target's first cost if left out.
        checks: Plans that test predictions, half of them random and half predicted.
        points: Plans that are recommended.
        limits: Constraints on the plans.
        scores: How single changes are scored (see `measure_predictions`); the study says if left
            out.
        improve: Further passes, for plans next to the recommended ones.
        metric: `bleu`: the recommended plans translate the validation set, as a last check.

    Raises:
        NasAttnError: Nothing can inherit, nothing could be measured, or nothing is translated.
    """
    assert isinstance(trainer.subject, SensitivityTarget)
    named = {cost, limits.second, *limits.limits}
    if (metric == "bleu" or DECODING in named) and trainer.subject.task != "translation":
        raise UsageError("only what translates is decoded, and this model does not translate")
    hold_on_baseline(trainer, trainer.subject)
    predictions = Predictions(trainer.subject, trainer.store, axis=cost, create=True)
    is_timed = DECODING in (predictions.axis, *limits.further)
    if is_timed:
        time_modules(trainer, predictions)
    predictions.check_counted(predictions.axis, *limits.further)
    measure_predictions(
        trainer,
        predictions,
        limits=limits,
        checks=checks,
        scores=scores or trainer.subject.scores,
        points=points,
        improve=improve,
    )
    findings = predictions.findings(limits, points)
    if not findings.front:
        raise NasAttnError("no plan within these limits can inherit from the baseline everywhere")
    if not findings.changes:
        raise NasAttnError("no single change could be measured; nas-attn status says why")
    if is_timed:
        time_models(trainer, predictions, findings)
    if metric == "bleu":
        translate(trainer, predictions, findings)
    if is_timed or metric is not None:
        findings = predictions.findings(limits, points)
    folder = trainer.subject.measurements
    if space is not None:
        folder /= space_folder(space)  # what another space gave stays
    write_findings(findings, folder)
    return PredictedFront(findings=findings, folder=folder)


def measure_predictions(
    trainer: Trainer,
    predictions: Predictions,
    *,
    limits: PlanConstraints,
    checks: int = CHECKS,
    scores: Scores = "measured",
    points: int = POINTS,
    improve: int = 0,
) -> None:
    """Score single changes of a trained model, and then measure plans that test what they predict.

    Args:
        trainer: Trainer of the target.
        predictions: What is measured, with its record.
        limits: Constraints on the plans.
        checks: Plans that test predictions.
        scores: `measured`: a pass over the validation set for each single change. `gradient`: one
            pass with gradients for all. `auto`: the same, and then some are measured that decide
            what recommended plans lose.
        points: Plans that are recommended.
        improve: Further passes in all, for plans next to the recommended ones.
    """
    target, events = predictions.target, trainer.events
    if not predictions.changes:
        raise NasAttnError(
            f"{NOTHING_INHERITS}, so there is nothing to measure: take another space, such as "
            "inherited_per_layer"
        )
    calibration = calibration_of(target, events)
    _say_what_changes_are_against(target, calibration, events)
    # Votes may come to the same heads.
    singles = list(dict.fromkeys(change.plan for change in predictions.changes))
    events.on_message(
        f"{len(singles)} single changes of {len(target.space.units)} units are "
        f"{'measured' if scores == 'measured' else 'scored'}; {predictions.left_out} choices are "
        "the baseline's own, or cannot inherit and need training"
    )
    if scores == "measured":
        _measure(trainer, predictions, singles, calibration, SINGLE_CHANGES)
    else:
        measured = predictions.measured()
        if not all(plan in measured for plan in singles):
            _score(predictions, singles, calibration, events)
    if scores == "auto":
        title = f"{SINGLE_CHANGES} that decide"
        most = max(LEAST_MEASURED, math.ceil(PART_MEASURED * len(singles)))
        for left in range(ROUNDS, 0, -1):
            measured = predictions.measured()
            count = most - sum(plan in measured for plan in singles)
            wanted = predictions.decisive(points, limits, max(0, math.ceil(count / left)))
            if not wanted:
                break
            _measure(trainer, predictions, wanted, calibration, title)
    tests = predictions.tests(checks, limits)
    if tests:
        _measure(trainer, predictions, tests, calibration, "tests of predictions")
    if improve:
        _improve(trainer, predictions, limits, calibration, passes=improve, points=points)


def _say_what_changes_are_against(
    target: SensitivityTarget, calibration: Path, events: Events
) -> None:
    """Conversions start from what was trained before any fine-tuning, whose loss is another one."""
    is_tuned = target.search.warm_start.is_on
    loss = load_calibration(calibration).losses.mean
    of_what = "the baseline before fine-tuning" if is_tuned else "the model"
    events.on_message(f"{of_what}: {METRIC} {loss:.4f}; changes are against it")


def _measure(
    trainer: Trainer,
    predictions: Predictions,
    plans: Sequence[AttentionPlan],
    calibration: Path,
    title: str,
) -> None:
    """Measure plans, as far as the record lacks them."""
    target = predictions.target
    loop = Trainer(target, predictions.store, trainer.address, trainer.events).run_plans(
        plans,
        build_job=lambda number, plan, _: target.build_measurement(number, plan, calibration),
        title=f"{target.name}, {title}",
        wording=Wording("conversion", change=CHANGE),
    )
    for trial in predictions.store.trials():
        if trial.failure is not None:
            trainer.events.on_failure(trial)
    loop.outcome()


def _improve(
    trainer: Trainer,
    predictions: Predictions,
    limits: PlanConstraints,
    calibration: Path,
    *,
    passes: int,
    points: int,
) -> None:
    """Measure plans next to the recommended ones, those first that are expected to be best.

    What is expected is the sum of single changes, and what gradients say of all changes together
    less what they say of each alone: to second order, how the changes act on each other.
    """
    nearby = predictions.nearby(points, limits)
    plans = dict.fromkeys(p.plan for some in nearby for p in some)
    model = predictions.model(limits)
    parts = {plan: model.parts(plan) for plan in plans}
    _score(
        predictions,
        list(dict.fromkeys([*plans, *(part for some in parts.values() for part in some)])),
        calibration,
        trainer.events,
    )
    scores = scores_of(predictions.store)

    def expected(prediction: Prediction) -> float:
        alone = math.fsum(scores[part.digest].change for part in parts[prediction.plan])
        return prediction.change + scores[prediction.plan.digest].change - alone

    ranked = [[some[0], *sorted(some[1:], key=expected)] for some in nearby]
    # The next best of every point, in turn, until there are enough; each point itself comes first.
    turns = itertools.chain.from_iterable(itertools.zip_longest(*ranked))
    wanted = list(dict.fromkeys(p.plan for p in turns if p is not None))
    known, tried = predictions.measured(), predictions.tried
    left = max(0, passes - sum(plan.digest in tried for plan in known))
    chosen = [plan for plan in wanted if plan not in known][:left]
    predictions.keep_tried(chosen)
    _measure(trainer, predictions, chosen, calibration, "next to recommended plans")


def _score(
    predictions: Predictions, plans: Sequence[AttentionPlan], calibration: Path, events: Events
) -> None:
    """Score plans by gradients, as far as the record lacks them."""
    target, known = predictions.target, scores_of(predictions.store)
    wanted = [plan for plan in plans if plan.digest not in known]
    if not wanted:
        return
    assert target.checkpoint is not None, "only earlier measurements can be read"
    events.on_message(f"scoring {len(wanted)} plans by gradients ...")
    began = time.monotonic()
    found = score_plans(
        target.checkpoint, wanted, target.data_folder, calibration, distil=target.distils
    )
    keep_scores(
        predictions.store,
        {
            plan: Measured(score.change, score.error)
            for plan, score in zip(wanted, found, strict=True)
        },
    )
    events.on_message(f"scored in {time.monotonic() - began:.0f} s")
