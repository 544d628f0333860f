"""Search: baseline, candidates, trainings beside them, and the report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nas_attn.analysis.agreement import spread_evenly
from nas_attn.analysis.predictions import PlanConstraints, Predictions
from nas_attn.analysis.random_band import keep_band, random_band
from nas_attn.analysis.sensitivity import SensitivityFindings
from nas_attn.analysis.trials import Trials
from nas_attn.engine.known_costs import changes_to_keep
from nas_attn.engine.loop import SearchLoop
from nas_attn.engine.provenance import keep_proposing
from nas_attn.engine.sensitivity import Prediction, largest_steps, spread_predictions
from nas_attn.engine.status import BUDGET
from nas_attn.engine.votes import votes_of
from nas_attn.engine.wording import Wording
from nas_attn.errors import ConfigError, NasAttnError, UsageError
from nas_attn.plan import AttentionPlan
from nas_attn.report.sensitivity import write_findings
from nas_attn.study.jobs import TrialJobs
from nas_attn.study.sensitivity import target_of_study
from nas_attn.study.study import Study
from nas_attn.trials.job import StartFolders
from nas_attn.workflows.defaults import POINTS
from nas_attn.workflows.events import Events, LogEvents
from nas_attn.workflows.live_report import pages_beside
from nas_attn.workflows.reporting import cold_store, write_study_report
from nas_attn.workflows.sensitivity import NOTHING_INHERITS, measure_predictions
from nas_attn.workflows.session import (
    PREDICTED,
    QUEUE,
    WHOLE,
    SearchPart,
    Session,
    advise,
    predicted_of,
    prepare_once,
)
from nas_attn.workflows.votes import hold_on_baseline, with_votes

logger = logging.getLogger(__name__)


def search(
    study: Study,
    *,
    address: str | None = None,
    events: Events | None = None,
    report_every: float | None = None,
) -> Session:
    """Run a study's search, or resume it, and write the report.

    Args:
        study: Study to search.
        address: Address of a running Ray cluster.
        events: Object that is called with the progress; left out, it is logged at level INFO.
        report_every: Seconds between two reports while the search runs; None writes the last alone.

    Raises:
        ConfigError, UsageError: Nothing was started.
        NasAttnError: The search ended early, or no trial has a result; what is there is reported.
        KeyboardInterrupt: The next call resumes.
    """
    events = events or LogEvents()
    study.check_flags()
    prepare_once(study, events)
    study.check_limits()
    advise(study)
    session = Session.begin(study, address=address, events=events)
    study = session.study
    keep_proposing(session.store, study.proposing())
    session.note_start()
    session.store.set_metadata(BUDGET, study.config.search.trials)
    failure: NasAttnError | None = None
    out = study.folder / "report"
    try:
        with pages_beside(study, out, report_every):
            _run(session)
    except (ConfigError, UsageError):
        raise  # nothing was started
    except NasAttnError as error:
        failure = error
    is_trained = any(trial.is_trained for trial in session.store.trials())
    if is_trained:
        troubles = [] if failure is None else [f"The last search ended early: {failure}"]
        _keep_band(session)
        page = write_study_report(study, session.store, out, troubles)
        events.on_message(f"report: {page}")
    if failure is not None:
        raise failure
    if not is_trained:
        raise NasAttnError("all trials have failed; nas-attn status says why, --trials adds some")
    return session


def _keep_band(session: Session) -> None:
    """Say what random proposals would have reached; a search whose band fails has its report."""
    study, store = session.study, session.store
    if study.config.search.warm_start.from_baseline:
        study = study.settled(votes_of(store))
    try:
        known = study.proposer(predicted=predicted_of(store)).known_cost
        keep_band(store, random_band(Trials.of(store, study.folder), known))
    except (NasAttnError, np.linalg.LinAlgError) as error:
        logger.warning("what random proposals would have reached is not known: %s", error)


def _run(session: Session) -> None:
    session = with_votes(session)
    config = session.study.config.search
    by_predictions = _by_predictions if config.predicts else _by_sampler
    loop = by_predictions(session)
    if config.warm_start.rank_agreement and not loop.has_given_up:
        _train_cold(session)
    loop.outcome()


def _by_sampler(
    session: Session,
    *,
    queue: Sequence[AttentionPlan] = (),
    trials: int | None = None,
    jobs: TrialJobs | None = None,
    part: SearchPart = WHOLE,
) -> SearchLoop:
    """Run the study's own search; plans of a queue come first."""
    study, config = session.study, session.study.config.search
    return session.run(
        proposer=study.proposer(queue, predicted_of(session.store)),
        config=config if trials is None else config.model_copy(update={"trials": trials}),
        build_job=(jobs or study.jobs).search_trial,
        part=part,
    )


def _by_predictions(session: Session) -> SearchLoop:
    """Train points that single conversions predict to be best, and then what the study says."""
    study, config = session.study, session.study.config.search
    queue = session.queue
    is_strategy = config.strategy == "sensitivity"
    wanted = config.trials - 1
    # Two thirds of the points are spread evenly; the others go where the front is unsure.
    first = -(-2 * wanted // 3) if is_strategy else min(config.startup_trials, wanted)
    if len(queue) >= first and not is_strategy:
        return _by_sampler(session, queue=queue)
    checkpoint = study.trained_checkpoint(session.train_baseline())
    target = target_of_study(study, checkpoint)
    hold_on_baseline(session, target)
    predictions = Predictions(target, session.store, create=True)
    if not (is_strategy or predictions.changes):
        logger.warning("%s, so the sampler starts without predictions", NOTHING_INHERITS)
        return _by_sampler(session)
    measure_predictions(
        session,
        predictions,
        limits=PlanConstraints(),
        scores=target.scores,
        points=max(POINTS, wanted if is_strategy else first),
    )
    findings = predictions.findings()
    if not _is_guide(session, findings, predictions.target.measurements):
        return _by_sampler(session)
    front = [p for p in findings.front if p.plan != study.baseline]
    if not queue:
        queue = _in_order(session, spread_predictions(front, first))
        if not config.warm_start.from_baseline:  # trained from scratch, heads are voted on again
            queue = [predictions.target.space.as_offered(plan) for plan in queue]
        if not is_strategy:
            # Before the queue, by which other drivers see that predictions are done.
            changes = changes_to_keep(
                study.space, predictions.target.space, study.baseline, findings.expected
            )
            session.store.set_metadata(PREDICTED, changes)
        _keep_queue(session, queue)
    if not is_strategy:
        return _by_sampler(session, queue=queue)
    loop = _in_rounds(session, front, queue)
    write_findings(predictions.findings(), predictions.target.measurements)
    return loop


def _in_rounds(
    session: Session, front: Sequence[Prediction], queue: list[AttentionPlan]
) -> SearchLoop:
    """Train the points of a queue, and then others where what came of them is unsure."""
    wanted, jobs = session.study.config.search.trials - 1, _lengthened(session, front)
    part = WHOLE
    if len(queue) < wanted:
        part = SearchPart("round 1 of 2", is_last=False)
        session.events.on_message(
            f"round 1 of 2: {len(queue)} points spread over the predicted front; in round 2 up to "
            f"{wanted - len(queue)} more, where the largest gaps are"
        )
    trials = 1 + min(len(queue), wanted)
    loop = _by_sampler(session, queue=queue, trials=trials, jobs=jobs, part=part)
    further = session.queue  # which another driver may have lengthened
    if loop.has_given_up or (len(further) <= len(queue) and len(queue) >= wanted):
        return loop
    if len(further) <= len(queue):
        trained = [trial for trial in session.store.trials() if trial.is_trained]
        reached = [(trial.cost or 0, (trial.point or (0.0,))[0]) for trial in trained]
        steps = largest_steps(front, reached, wanted - len(queue))
        further = [*queue, *_in_order(session, steps)]
        _keep_queue(session, further)
    trials = 1 + min(len(further), wanted)
    return _by_sampler(
        session, queue=further, trials=trials, jobs=jobs, part=SearchPart("round 2 of 2")
    )


def _lengthened(session: Session, front: Sequence[Prediction]) -> TrialJobs:
    """What builds the trials of a predicted front, each fine-tuned for as long as is asked.

    With `fraction: auto` one that is predicted to lose most is fine-tuned for twice as long as one
    that loses nothing; measured single changes alone say so, and thus it stays when tests of
    predictions are added.
    """
    jobs = session.study.jobs
    more = session.study.config.search.warm_start.longest - 1.0
    most = max((point.change for point in front), default=0.0)
    if not more or most <= 0.0:
        return jobs
    times = {point.plan: 1.0 + more * max(0.0, point.change) / most for point in front}
    return replace(jobs, lengthened=times)


def _is_guide(session: Session, findings: SensitivityFindings, folder: Path) -> bool:
    """Whether predictions lead the search; their verdict is written and said.

    Raises:
        NasAttnError: They do not, and the study's strategy has nothing else to go by.
    """
    is_strategy = session.study.config.search.strategy == "sensitivity"
    if not findings.changes:
        raise NasAttnError("no single change could be measured; nas-attn status says why")
    if not findings.front:
        if is_strategy:
            raise NasAttnError(
                "no plan within objectives.limits can inherit from the baseline everywhere; widen "
                "them, or search with strategy: sampler"
            )
        return False
    write_findings(findings, folder)
    session.events.on_message(findings.verdict)
    if is_strategy and not findings.is_guide:
        raise NasAttnError("predictions are no guide for this model; search with strategy: sampler")
    return findings.is_guide


def _in_order(session: Session, points: Sequence[Prediction]) -> list[AttentionPlan]:
    """The plans of points, from small to large; from large to small where each starts from a larger
    one."""
    plans = [point.plan for point in points]
    return plans[::-1] if session.study.config.search.warm_start.ladder else plans


def _keep_queue(session: Session, queue: Sequence[AttentionPlan]) -> None:
    session.store.set_metadata(QUEUE, [plan.to_json() for plan in queue])


def _train_cold(session: Session) -> None:
    """Train some warm trials from scratch too, to see whether the order is the same."""
    study, store = session.study, session.store
    wanted = study.config.search.warm_start.rank_agreement
    chosen = spread_evenly(store.trials(), wanted)
    if len(chosen) < wanted:
        session.events.on_message(
            f"the rank agreement is wanted of {wanted} warm trials, but only {len(chosen)} are "
            "complete: give the search more trials"
        )
    numbers = ", ".join(str(number) for number in sorted(trial.number for trial in chosen))
    session.events.on_message(
        f"trials {numbers} are also trained from scratch, for the rank agreement"
    )
    baseline = next((t.folder for t in store.trials() if t.is_baseline and t.is_trained), None)
    folders = StartFolders(baseline=baseline)
    loop = session.run_plans(
        [trial.plan for trial in chosen if trial.plan is not None],
        store=cold_store(study, store, create=True),
        build_job=lambda number, plan, _: study.jobs.cold_trial(number, plan, folders),
        title=f"{store.name}, from scratch",
        wording=Wording("training from scratch"),
    )
    if loop.has_given_up:
        loop.outcome()
