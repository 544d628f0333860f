"""What a search shows while it runs, as rich renderables."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas_attn.benchmark.attention import Timing
from nas_attn.benchmark.commands import Speed, ratio
from nas_attn.report.compare import Comparison, ratio_text
from nas_attn.report.sensitivity import TOLERANCES, Findings, prediction_row
from nas_attn.report.tables import cost_text
from nas_attn.search.driver import Snapshot
from nas_attn.search.objectives import Objectives
from nas_attn.search.record import TrialRecord
from nas_attn.training.doctor import Finding

MAX_FRONT_ROWS = 12
MAX_RUNNING_ROWS = 16
UPDATE_SECONDS = 0.3


class SearchDisplay:
    """A live view of a search; rich asks for it again and again.

    Args:
        name: of the study.
        objectives: what is weighed.
        workers: trials at a time.
        has_front: whether the best points so far are shown.
    """

    def __init__(
        self, name: str, objectives: Objectives, workers: int, *, has_front: bool = True
    ) -> None:
        self.name = name
        self.objectives = objectives
        self.workers = workers
        self.has_front = has_front
        self.started = time.time()
        self.snapshot: Snapshot | None = None
        self._updated = 0.0

    def update(self, make: Callable[[], Snapshot], *, now: bool = False) -> None:
        """Something happened; a snapshot is made if the last one is old, or one is wanted now."""
        if now or time.monotonic() - self._updated > UPDATE_SECONDS:
            self.snapshot, self._updated = make(), time.monotonic()

    def __rich__(self) -> RenderableType:
        snapshot = self.snapshot
        if snapshot is None:
            return Text("starting ...")
        parts: list[RenderableType] = [self._headline(snapshot)]
        if snapshot.running:
            parts.append(self._running(snapshot))
        if snapshot.front and self.has_front:
            parts.append(front_table(snapshot.front, snapshot.baseline, self.objectives))
        return Group(*parts)

    def _headline(self, snapshot: Snapshot) -> RenderableType:
        left = snapshot.seconds_left(self.workers)
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            Text(self.name, style="bold"),
            ProgressBar(total=snapshot.budget, completed=snapshot.over, width=24),
            f"{snapshot.finished}/{snapshot.budget} finished",
            f"{snapshot.stopped} stopped early" if snapshot.stopped else "",
            f"{len(snapshot.running)} running"
            + (f", {snapshot.elsewhere} elsewhere" if snapshot.elsewhere else ""),
            Text(f"{snapshot.failed} failed", style="red" if snapshot.failed else ""),
            f"{duration(time.time() - self.started)} gone",
            f"about {duration(left)} left" if left and snapshot.over < snapshot.budget else "",
        )
        return grid

    def _running(self, snapshot: Snapshot) -> Table:
        table = Table(title="running", title_justify="left", expand=False, box=None)
        axis, loss = self.objectives.axis, self.objectives.loss
        for name in ("trial", axis, "time", "seed", "updates", loss):
            table.add_column(name, justify="right")
        table.add_column("plan", overflow="fold")
        for trial in snapshot.running[:MAX_RUNNING_ROWS]:
            last = trial.last
            table.add_row(
                str(trial.number),
                f"{trial.cost:,}",
                duration(time.time() - trial.started),
                "" if last is None else str(last.seed),
                "" if last is None else str(last.num_updates),
                "" if last is None else f"{last.loss:.4f}",
                Text(str(trial.plan)),
            )
        return table


def front_table(
    front: tuple[TrialRecord, ...], baseline: TrialRecord | None, objectives: Objectives
) -> Table:
    """The best points so far, from small to large; evenly thinned if there are many."""
    rows = list(front)
    if len(rows) > MAX_FRONT_ROWS:
        last = len(rows) - 1
        rows = [rows[round(i * last / (MAX_FRONT_ROWS - 1))] for i in range(MAX_FRONT_ROWS)]
    title = "front so far" if len(rows) == len(front) else f"front so far ({len(front)} points)"
    table = Table(title=title, title_justify="left", expand=False, box=None)
    effective = any(trial.effective is not None for trial in rows)
    further = objectives.costs[1:]
    columns = ["trial", objectives.axis, "change", *(["effective"] if effective else [])]
    for name in (*columns, *further, objectives.loss, "change"):
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("plan", overflow="fold")
    for trial in rows:
        smaller = worse = ""
        if baseline is not None and not trial.is_baseline and baseline.cost:
            smaller = f"{(trial.cost or 0) / baseline.cost - 1:+.1%}"
            worse = f"{(trial.loss or 0.0) - (baseline.loss or 0.0):+.4f}"
        table.add_row(
            str(trial.number),
            f"{trial.cost:,}",
            smaller or "baseline",
            *(["" if trial.effective is None else f"{trial.effective:,}"] if effective else []),
            *(cost_text(name, trial.costs.get(name)) for name in further),
            f"{trial.loss:.4f}",
            worse,
            Text(trial.text),
        )
    return table


def confirmation_table(rows: Sequence[Mapping[str, Any]], axis: str) -> Table:
    """What trainings with fresh seeds gave: rows of `confirmation_rows`, each plan once.

    Args:
        rows: to show.
        axis: name of the cost.
    """
    table = Table(
        box=box.HORIZONTALS,
        caption="\u00b1 after a mean: its standard error; after a change: half of its 95 % "
        "interval (Student's, seeds as pairs)",
        caption_justify="left",
    )
    for name in ("trial", axis.replace("_", " "), "score", "mean", "change"):
        table.add_column(name, justify="left" if name == "score" else "right", no_wrap=True)
    table.add_column("")
    table.add_column("plan", overflow="fold")
    shown = None
    for row in rows:
        plan = row["plan"]
        about = ["" if row["trial"] is None else str(row["trial"]), f"{row['cost']:,}", plan]
        if plan == shown:
            about = ["", "", ""]
        elif shown is not None:
            table.add_section()
        shown = plan
        change = ""
        if row["interval"] is not None:
            change = f"{row['change']:+.4f} \u00b1{row['interval']:.4f}"
        mean = f"{row['mean']:.4f} \u00b1{row['error']:.4f}"
        verdict = "baseline" if row["baseline"] else row["verdict"] or ""
        table.add_row(*about[:2], row["score"], mean, change, verdict, Text(about[2]))
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Searches compared by their hypervolume, one a row."""
    table = Table(title="fronts compared", title_justify="left", box=None)
    table.add_column("study", overflow="fold")
    for name in ("trained", "front", "updates", "seconds", "hypervolume", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        table.add_row(
            Text(row.study),
            str(row.trials_trained),
            str(row.front_points),
            f"{row.updates:,}" if row.updates else "",
            f"{row.seconds:,.0f}",
            f"{row.hypervolume:,.6g}",
            Text(ratio_text(row)),
        )
    return table


def savings_table(findings: Findings) -> Table:
    """What each unit saves within a tolerance, by its best choice."""
    table = Table(
        title=f"{findings.axis.replace('_', ' ')} saved by one unit within so many bits a token",
        title_justify="left",
        box=box.HORIZONTALS,
    )
    table.add_column("unit", no_wrap=True)
    for tolerance in TOLERANCES:
        table.add_column(f"{tolerance:g}", justify="right")
    for unit, cells in findings.savings():
        row = [
            Text.assemble(f"{saved:.1%}", (f"\n{choice}", "dim")) if saved > 0 else Text("-")
            for saved, choice in cells
        ]
        table.add_row(unit, *row)
    return table


def predictions_table(findings: Findings) -> Table:
    """The recommended points of a predicted front."""
    table = Table(title="predicted front", title_justify="left", box=None)
    for name in (findings.axis.replace("_", " "), "change", "loss change", "measured"):
        table.add_column(name, justify="right")
    table.add_column("plan", overflow="fold")
    for prediction in findings.chosen:
        row = prediction_row(prediction, findings)
        table.add_row(
            f"{row['cost']:,}",
            f"{row['cost_change']:+.1%}",
            f"{row['corrected']:+.4f}",
            "" if row["measured"] is None else f"{row['measured']:+.4f}",
            Text(str(prediction.plan)),
        )
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    """What works: schemes in rows, tasks in columns."""
    table = Table(box=box.HORIZONTALS, show_lines=True)
    table.add_column("scheme")
    tasks = list(dict.fromkeys(finding.task for finding in findings))
    for task in tasks:
        table.add_column(task.replace("_", " "))
    for scheme in dict.fromkeys(finding.scheme for finding in findings):
        row = [finding for finding in findings if finding.scheme == scheme]
        cells = [[_step_text(finding) for finding in row if finding.task == task] for task in tasks]
        table.add_row(scheme, *(Text("\n").join(lines) for lines in cells))
    return table


def timings_tables(timings: Sequence[Timing]) -> Group:
    """Times over the baseline's, with their spread, by contender and shape: a table a phase."""
    return Group(*(_timings_table(timings, p) for p in dict.fromkeys(t.phase for t in timings)))


def _timings_table(timings: Sequence[Timing], phase: str) -> Table:
    rows = [timing for timing in timings if timing.phase == phase]
    table = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0))
    table.add_column(f"{phase.replace('_', ' ')}: time / baseline's")
    columns = list(dict.fromkeys((t.batch, t.length) for t in rows))
    for batch, length in columns:
        table.add_column(f"{batch}x{length}", justify="right", no_wrap=True)
    cells = {(t.contender, t.batch, t.length): t for t in rows}
    for name in dict.fromkeys(timing.contender for timing in rows):
        row = [cells.get((name, *column)) for column in columns]
        table.add_row(name, *("" if t is None else _ratio_text(t) for t in row))
    return table


def speeds_table(speeds: Sequence[Speed]) -> Table:
    """Speeds of fairseq's commands and how many times stock fairseq's they are, medians."""
    table = Table(box=box.HORIZONTALS)
    table.add_column("model", no_wrap=True)
    for title in ("train\nwords/s", "generate\nsentences/s", "whole\ncommand"):
        table.add_column(title, justify="right")
        table.add_column("/ stock", justify="right")
    stock = speeds[0]
    for speed in speeds:
        cells = [speed.contender]
        for measure in ("words_a_second", "decoding", "command"):
            values = getattr(speed, measure)
            cells += [
                f"{statistics.median(values):.1f}",
                f"{ratio(values, getattr(stock, measure)):.2f}",
            ]
        table.add_row(*cells)
    return table


def _ratio_text(timing: Timing) -> Text:
    style = "green" if timing.ratio < 0.97 else "red" if timing.ratio > 1.03 else ""
    return Text.assemble((f"{timing.ratio:.2f}", style), (f" \u00b1{timing.spread:.0%}", "dim"))


def _step_text(finding: Finding) -> Text:
    if finding.fault is not None:
        return Text.assemble(f"{finding.step} ", ("FAILED", "red"))
    return Text.assemble(f"{finding.step} ", (finding.shown or "ok", "green"))


def duration(seconds: float) -> str:
    """Seconds in words, short."""
    minutes, rest = divmod(int(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
