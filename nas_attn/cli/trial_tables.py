"""Trials on the terminal: a plot of the front, the front, the last ones, why one failed."""

from __future__ import annotations

from collections.abc import Sequence

from nas_attn.cli.parts import PlanTable, plain
from nas_attn.cli.text_plot import Series, TextPlot
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.report.formatting import cost_text, cost_words, state_text
from nas_attn.workflows.events import duration

MAX_FRONT_ROWS = 12
MAX_REASON_LINES = 3
"""A longer reason, such as a traceback, is shortened where there are many."""


def failure_text(trial: TrialRecord, *, brief: bool = False, what: str = "") -> str:
    """Why a trial failed.

    Args:
        trial: Failed trial.
        brief: Whether a reason of many lines is cut to the first and the last one, and to where its
            logs are.
        what: Words before "trial", such as "the confirmation of".
    """
    kind = "" if trial.failure is None else f" ({trial.failure})"
    reason = trial.reason or "no reason on record"
    named = f"{what} trial {trial.number}".strip()
    return f"{named} failed{kind}: {brief_reason(reason, trial) if brief else reason}"


def brief_reason(reason: str, trial: TrialRecord) -> str:
    """A reason of many lines by its first and last one, and where the logs are."""
    lines = reason.strip().splitlines()
    if len(lines) <= MAX_REASON_LINES:
        return reason
    logs = "" if trial.folder is None else f"\n(logs: {trial.folder})"
    return f"{lines[0]}\n... {lines[-1].strip()}{logs}"


def front_plot(
    trained: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    baseline: TrialRecord | None,
    objectives: Objectives,
) -> TextPlot:
    """Loss over cost: the front, what it dominates, and the baseline.

    Dominated trials that are much worse than all the others are left out, so that one training that
    diverged does not hide the rest; how many is said.

    Args:
        trained: The finished trials.
        front: Finished trials that no other dominates.
        baseline: Trial of the baseline; None if it is not finished.
        objectives: Objectives of the study.
    """
    on_front = {trial.number for trial in front}
    best = [*front, *([] if baseline is None else [baseline])]
    dominated = [t for t in trained if t.number not in on_front and not t.is_baseline]
    shown = _near(dominated, best, maximise=objectives.maximise)
    far = len(dominated) - len(shown)
    series = [
        Series(name="dominated", points=_points(shown), mark="·", ascii_mark=".", style="dim"),
        Series(name="front", points=_points(front), mark="●", ascii_mark="o", style="bold cyan"),
        Series(
            name="baseline",
            points=[] if baseline is None else _points([baseline]),
            mark="◆",
            ascii_mark="#",
            style="bold yellow",
        ),
    ]
    left_out = f" ({far} far worse left out)" if far else ""
    return TextPlot(
        series=series,
        x_name=cost_words(objectives.primary_cost),
        y_name=plain(f"{objectives.quality}{left_out}").plain,
        x_text=lambda value: cost_text(objectives.primary_cost, value),
        y_text=lambda value: f"{value:.4f}",
    )


def _points(trials: Sequence[TrialRecord]) -> list[tuple[float, float]]:
    return [(t.cost, t.loss) for t in trials if t.cost is not None and t.loss is not None]


def _near(
    dominated: Sequence[TrialRecord], best: Sequence[TrialRecord], *, maximise: bool
) -> list[TrialRecord]:
    """Those that are worse than the worst of the best by no more than the best differ."""
    losses = [loss for _, loss in _points(best)]
    if not losses or min(losses) == max(losses):
        return list(dominated)
    span = max(losses) - min(losses)
    if maximise:
        return [t for t in dominated if t.loss is None or t.loss >= min(losses) - span]
    return [t for t in dominated if t.loss is None or t.loss <= max(losses) + span]


def latest_table(trials: Sequence[TrialRecord], objectives: Objectives) -> PlanTable:
    """Trials that are over, the last one first, with the reason of those without a result.

    Args:
        trials: The last one at the end.
        objectives: Objectives of the study.
    """
    rows = []
    for trial in reversed(trials):
        cells = [
            str(trial.number),
            "finished" if trial.is_trained else state_text(trial),
            cost_text(objectives.primary_cost, trial.cost),
            "" if trial.loss is None else f"{trial.loss:.4f}",
            duration(trial.seconds),
        ]
        has_reason = trial.reason is not None and not trial.is_trained
        reason = f"\n{brief_reason(trial.reason or '', trial)}" if has_reason else ""
        rows.append((cells, plain(trial.text + reason)))
    columns = ("trial", "", words(objectives.primary_cost), words(objectives.metric), "trained for")
    return PlanTable(title="last trials", columns=columns, rows=rows)


def front_table(
    front: Sequence[TrialRecord], baseline: TrialRecord | None, objectives: Objectives
) -> PlanTable:
    """The best points so far, from small to large; evenly thinned if there are many."""
    rows = list(front)
    if len(rows) > MAX_FRONT_ROWS:
        last = len(rows) - 1
        rows = [rows[round(i * last / (MAX_FRONT_ROWS - 1))] for i in range(MAX_FRONT_ROWS)]
    title = "front so far" if len(rows) == len(front) else f"front so far ({len(front)} points)"
    effective = any(trial.effective is not None for trial in rows)
    further = objectives.costs[1:]
    columns = ["trial", objectives.primary_cost, "change", *(["effective"] if effective else [])]
    columns += [*further, objectives.metric, "change"]
    lines = []
    for trial in rows:
        smaller = worse = ""
        if baseline is not None and not trial.is_baseline and baseline.cost:
            smaller = f"{(trial.cost or 0) / baseline.cost - 1:+.1%}"
            worse = f"{(trial.loss or 0.0) - (baseline.loss or 0.0):+.4f}"
        cells = [
            str(trial.number),
            f"{trial.cost:,}",
            smaller or "baseline",
            *(["" if trial.effective is None else f"{trial.effective:,}"] if effective else []),
            *(cost_text(name, trial.costs.get(name)) for name in further),
            f"{trial.loss:.4f}",
            worse,
        ]
        lines.append((cells, plain(trial.text)))
    return PlanTable(title=title, columns=[words(name) for name in columns], rows=lines)


def words(name: str) -> str:
    """A name without underscores."""
    return name.replace("_", " ")
