"""Write a study's report from all that its records hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nas_attn.analysis.agreement import Agreement, agreement_of
from nas_attn.analysis.confirmation import confirmation_rows
from nas_attn.analysis.random_band import recorded_band
from nas_attn.analysis.sensitivity import SensitivityFindings, measurements_of
from nas_attn.analysis.trials import Trials
from nas_attn.engine.provenance import machine_of, versions_of
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.errors import NasAttnError, PlanError, SearchError
from nas_attn.machine import library_versions
from nas_attn.masking import mask
from nas_attn.plan import SiteShape
from nas_attn.report import ReportContext, write_report
from nas_attn.study.evaluation import evaluation_texts
from nas_attn.study.form import StudyForm
from nas_attn.study.recorded import ModelFacts, recorded_model

if TYPE_CHECKING:
    from nas_attn.study.study import Study

logger = logging.getLogger(__name__)

CONFIRMED = "confirmed_with_seeds"
"""Under this name the record keeps how many seeds the last confirmation had."""

NO_FACTS = ModelFacts(shapes={})
AGREEMENT = "The agreement of warm and cold is"

Part = TypeVar("Part")


class _Parts:
    """Parts of a report, of which one that cannot be made is left out, in words."""

    def __init__(self, troubles: Sequence[str]) -> None:
        self.troubles = [mask(trouble) for trouble in troubles]

    def make(self, what: str, make: Callable[[], Part], instead: Part) -> Part:
        try:
            return make()
        except NasAttnError as error:
            self.troubles.append(mask(f"{what} left out: {error}"))
            logger.warning("the report is without a part: %s", self.troubles[-1])
            return instead


class NothingToReportError(NasAttnError):
    """No trial is complete yet."""


def write_study_report(
    study: StudyForm,
    store: TrialStore,
    out: Path,
    troubles: Sequence[str] = (),
    *,
    reload_seconds: float | None = None,
) -> Path:
    """Write what there is to report; what cannot be made is left out, and the report says why.

    All is in the record but predictions, for which fairseq is asked, as for records of old.

    Args:
        study: Study, or what its file says.
        store: Trials of the study.
        out: Folder of the report.
        troubles: Faults and gaps to be said beforehand, in sentences.
        reload_seconds: Seconds after which the page reloads itself, as it will be written again;
            None where it will not.

    Returns:
        The page.

    Raises:
        NothingToReportError: No trial is complete.
    """
    trials = Trials.of(store, study.folder)
    if not trials.trained:
        raise NothingToReportError("no trial is complete yet, so there is nothing to report")
    parts, metadata = _Parts(troubles), store.metadata()
    facts = parts.make("What is known of the model is", lambda: _facts(study, metadata), NO_FACTS)
    findings = parts.make("What was predicted is", lambda: _findings(study, store), None)
    is_replayed = study.config.replay is not None
    context = ReportContext(
        name=study.config.name,
        description=study.config.description,
        seeds=len(study.config.training.seeds),
        settings=store.settings() | {"search": study.config.search.model_dump(mode="json")},
        versions=dict.fromkeys(library_versions(), "(not on record)") | versions_of(metadata),
        machine=machine_of(metadata),
        evaluate={}
        if is_replayed
        else parts.make(
            "Commands of evaluation are", lambda: evaluation_texts(study.config, trials), {}
        ),
        confirmed=parts.make("What was confirmed is", lambda: confirmed_rows(study, store), []),
        fine_tuning=facts.tuning_updates,
        agreement=parts.make(AGREEMENT, lambda: _agreement(study, store), None),
        findings=findings,
        band=recorded_band(metadata),
        convert=() if findings is None else _convert(study, trials),
        troubles=parts.troubles,
        reload_seconds=reload_seconds,
        module_parameters=facts.module_parameters,
        shapes=facts.shapes if _fit(facts.shapes, trials) else {},
        study=() if is_replayed else study.typed,
        reading=() if is_replayed else study.reading,
    )
    return write_report(trials, context, out)


def judged(study: StudyForm) -> Study:
    """A study checked whole, to be read.

    Raises:
        ConfigError: It is refused; lists everything wrong with it, by key path.
    """
    from nas_attn.study.study import Study  # which imports torch

    return study if isinstance(study, Study) else Study.judged(study, is_read_only=True)


def _facts(study: StudyForm, metadata: Mapping[str, Any]) -> ModelFacts:
    return recorded_model(metadata) or judged(study).facts()


def confirmation_store(
    study: StudyForm, store: TrialStore, seeds: int, *, create: bool = False
) -> TrialStore:
    """The record of a confirmation, in the storage of its search."""
    # Names of studies hold no spaces, so this can be no other study's.
    name = f"{store.name} (confirmed with {seeds} seeds)"
    return TrialStore(name, store.storage, study.objectives, create=create)


def confirmed_rows(study: StudyForm, store: TrialStore) -> list[dict[str, Any]]:
    """What the last confirmation has given; empty if there was none."""
    seeds = store.metadata().get(CONFIRMED)
    if seeds is None:
        return []
    numbers = {t.plan: t.number for t in store.trials() if t.plan is not None and t.is_trained}
    confirmed = confirmation_store(study, store, seeds).trials()
    return confirmation_rows(Trials(confirmed, study.objectives), numbers)


def cold_store(study: StudyForm, store: TrialStore, *, create: bool = False) -> TrialStore:
    """The record of what was trained from nothing beside warm trials, in the search's storage."""
    # Names of studies hold no spaces, so this can be no other study's.
    return TrialStore(f"{store.name} (cold)", store.storage, study.objectives, create=create)


def _agreement(study: StudyForm, store: TrialStore) -> Agreement | None:
    """What is known of the rank agreement of warm and cold trials."""
    if not study.config.search.warm_start.is_on:
        return None
    try:
        cold = cold_store(study, store).trials()
    except SearchError:
        return None  # never asked for
    return agreement_of(store.trials(), cold)


def _findings(study: StudyForm, store: TrialStore) -> SensitivityFindings | None:
    """What single conversions of the study's baseline predict; None if none was measured."""
    name = measurements_of(store.name, distils=study.config.search.warm_start.distil)
    if study.config.replay is not None or not store.has_child(name):
        return None
    from nas_attn.analysis.predictions import Predictions  # which import torch
    from nas_attn.study.sensitivity import target_of_study

    predictions = Predictions(target_of_study(judged(study), None), store)
    findings = predictions.findings()
    return findings if findings.front and findings.changes else None


def _convert(study: StudyForm, trials: Trials) -> list[str]:
    """What the command `convert` is told of the baseline; nothing if it is not trained."""
    baseline = trials.baseline
    if baseline is None or baseline.folder is None:
        return []
    whole = judged(study)
    paths = (whole.trained_checkpoint(baseline), whole.data_set.folder)
    checkpoint, data = (str(_from_here(path)) for path in paths)
    distil = ["--distil"] if study.config.search.warm_start.distil else []
    return [checkpoint, "--calibrate", data, *distil]


def _from_here(path: Path) -> Path:
    """A path as one types it in the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _fit(shapes: Mapping[str, SiteShape], trials: Sequence[TrialRecord]) -> bool:
    """Whether all plans on record are of a model."""
    try:
        for plan in [trial.plan for trial in trials if trial.plan is not None]:
            for site, shape in shapes.items():
                plan.layers(site, shape.num_layers)
    except PlanError:
        return False
    return True
