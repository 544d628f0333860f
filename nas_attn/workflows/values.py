"""What commands show, as plain values, which `--json` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nas_attn.analysis.sensitivity import improvement_row, prediction_row
from nas_attn.engine.audit import running_then
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.status import Status
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.report.formatting import state_text
from nas_attn.study.shipped import shipped_description, shipped_names

if TYPE_CHECKING:
    from nas_attn.analysis.comparison import Comparison
    from nas_attn.study.study import Study
    from nas_attn.workflows.export import Exported, ExportedCheckpoint
    from nas_attn.workflows.sensitivity import PredictedFront
    from nas_attn.workflows.spaces import MeasuredSpace


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """What a study that was checked comes to.

    Args:
        name: Name of the study.
        plans: Number of plans in its space.
        trials: Number of trials, the baseline included.
        seeds: Trainings of each trial.
        strategy: Source of plans, in words.
        effort: What is trained, measured and fine-tuned, in words.
        cost: Name of the cost that trials are spread over.
        least: The least of it that a plan comes to; None before the data set is made, if the study
            file has no vocabulary size to estimate it by.
        most: The most of it.
        estimated: How it was estimated, before the data set is made; else empty.
    """

    name: str
    plans: int
    trials: int
    seeds: int
    strategy: str
    effort: str
    cost: str
    least: float | None = None
    most: float | None = None
    estimated: str = ""

    @property
    def text(self) -> str:
        """All but the cost, in a line."""
        return f"{self.name}: {self.plans:,} plans; {self.effort}; {self.strategy}"


def summarise(study: Study) -> StudySummary:
    """Check what can be checked of a study before it is searched, and sum it up.

    Raises:
        ConfigError: The model cannot be built with the data, or no plan is within the limits.
    """
    from nas_attn.workflows.effort import effort_text
    from nas_attn.workflows.session import advise  # imports fairseq

    search = study.search
    if search.strategy == "sensitivity":
        strategy = "strategy sensitivity"
    else:
        startup = "predicted" if search.enqueue == "sensitivity" else "stratified"
        strategy = f"sampler {search.sampler} after {search.startup_trials} {startup} trials"
    least, most = None, None
    is_made = study.data_folder.is_dir()
    counted = study if is_made else study.estimated()
    if counted is not None:
        counted.check_limits()
        least, most = counted.axis_range()
    if is_made:
        advise(study)
    return StudySummary(
        name=study.name,
        plans=study.space.size,
        trials=search.trials,
        seeds=len(study.config.training.seeds),
        strategy=strategy,
        effort=effort_text(study),
        cost=study.objectives.primary_cost,
        least=least,
        most=most,
        estimated="" if counted is None else counted.estimate_text.removeprefix(", "),
    )


def trial_values(trial: TrialRecord) -> dict[str, Any]:
    """A trial by what it is, costs and came to."""
    return {
        "trial": trial.number,
        "state": state_text(trial),
        "baseline": trial.is_baseline,
        "loss": trial.loss,
        "losses": list(trial.losses),
        "costs": dict(trial.costs),
        "plan": None if trial.plan is None else trial.plan.to_json(),
        "folder": trial.folder,
    }


def status_values(status: Status, objectives: Objectives) -> dict[str, Any]:
    """Where a study stands."""
    return {
        "study": status.name,
        "metric": objectives.metric,
        "maximise": objectives.maximise,
        "costs": list(objectives.costs),
        "trials": {
            "wanted": status.budget,
            "finished": len(status.finished),
            "stopped_early": len(status.stopped),
            "over_limit": len(status.over_limit),
            "running": len(status.running),
            "interrupted": len(status.interrupted),
            "failed": len(status.failed),
        },
        "drivers": status.active_drivers,
        "trials_per_hour": status.trials_an_hour,
        "seconds_left": status.seconds_left,
        "front": [trial_values(trial) for trial in status.front],
        "baseline": None if status.baseline is None else trial_values(status.baseline),
        "running": [
            trial_values(running.trial)
            | {
                "driver": running.driver,
                "is_alive": running.is_alive,
                "updates": None if running.updates is None else running.updates.done,
                "updates_wanted": None if running.updates is None else running.updates.total,
            }
            for running in status.unfinished
        ],
        "failed": [
            trial_values(trial) | {"failure": trial.failure, "reason": trial.reason}
            for trial in status.failed
        ],
        "children": [asdict(child) for child in status.children],
    }


def proposal_values(trials: Sequence[TrialRecord]) -> dict[str, Any]:
    """Which plan was proposed by which driver, and what was running then."""
    return {
        "proposals": [
            {
                "trial": trial.number,
                "state": state_text(trial),
                "driver": trial.driver,
                "running_then": sorted(running),
                "plan": None if trial.plan is None else trial.plan.to_json(),
            }
            for trial, running in zip(trials, running_then(trials), strict=True)
        ]
    }


def space_values(spaces: Iterable[MeasuredSpace], arch: str) -> dict[str, Any]:
    """Shipped search spaces over an architecture, and shipped studies."""
    studies = [
        {"name": name, "description": shipped_description(name).strip()}
        for name in shipped_names("studies")
    ]
    return {"arch": arch, "spaces": [asdict(space) for space in spaces], "studies": studies}


def comparison_values(compared: Comparison) -> dict[str, Any]:
    """Searches compared by their hypervolume."""
    return {
        "reference": asdict(compared.reference),
        "interval_by": compared.interval,
        "studies": [asdict(row) for row in compared.rows],
        "notes": list(compared.notes),
    }


def export_values(made: Exported) -> dict[str, Any]:
    """What was exported, how it stands to the baseline, and how sure that is."""
    facts = made.facts
    return trial_values(facts.trial) | {
        "comparison": facts.comparison,
        "seed": asdict(facts.seed),
        "mean": facts.mean,
        "standard_error": facts.error,
        "noise": facts.noise,
        "change": None if facts.change is None else asdict(facts.change),
        "confirmed": None if facts.confirmed is None else asdict(facts.confirmed),
        "test": [asdict(score) for score in facts.tests],
        "test_bytes": made.test_bytes,
        **checkpoint_values(made),
    }


def checkpoint_values(made: Exported | ExportedCheckpoint) -> dict[str, Any]:
    """Where an export is, in which form, and what its check found."""
    return {
        "folder": str(made.folder),
        "format": made.form,
        "plan": made.plan.to_json(),
        "model_bytes": made.bytes,
        "check": None if made.check is None else asdict(made.check),
    }


def predicted_values(predicted: PredictedFront) -> dict[str, Any]:
    """A predicted front, and whether it may be followed."""
    findings = predicted.findings
    return {
        "study": findings.name,
        "cost": findings.axis,
        "baseline_cost": findings.base_cost,
        "is_guide": findings.is_guide,
        "verdict": findings.verdict,
        "front": [prediction_row(prediction, findings) for prediction in findings.chosen]
        if findings.is_guide
        else [],
        "improvements": [improvement_row(one) for one in findings.improvements],
        "folder": str(predicted.folder),
    }
