"""What commands show, a search while it runs among them, as rich renderables."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas_attn.analysis.comparison import Comparison
from nas_attn.analysis.sensitivity import TOLERANCES, Findings, prediction_row
from nas_attn.benchmark.attention import Timing
from nas_attn.benchmark.commands import Speed, ratio
from nas_attn.cli.text_plot import Series, TextPlot
from nas_attn.fairseq_tools.self_test import StepOutcome
from nas_attn.report.comparison import ratio_text
from nas_attn.report.formatting import cost_text, cost_words, state_text
from nas_attn.search.objectives import Objectives
from nas_attn.search.snapshot import LATEST, Snapshot
from nas_attn.search.status import Status
from nas_attn.search.trial_record import TrialRecord

MAX_FRONT_ROWS = 12
MAX_RUNNING_ROWS = 16
MIN_PLAN_WIDTH = 40
"""A plan has at least so many columns, or lines of its own."""
MAX_REASON_LINES = 3
"""A longer reason, such as a traceback, is shortened where there are many."""
UPDATE_SECONDS = 0.3


def plain(text: str) -> Text:
    """A text from a file, a log or an error, of which a terminal interprets nothing."""
    return Text("".join(c if c.isprintable() or c == "\n" else " " for c in text))


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Parts one below the other, in rich's protocol.

    Args:
        parts: by name, the most important first.
        fits: shorten tables to the lines that the terminal has, leave out the parts that it has no
            lines for, and name those.
        is_spaced: with empty lines between the parts, if there is no need to fit.
    """

    parts: Sequence[tuple[str, RenderableType]]
    fits: bool = False
    is_spaced: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.fits:
            yield from self._fitted(console, options)
            return
        for index, (_, part) in enumerate(self.parts):
            if self.is_spaced and index:
                yield Text()
            yield part

    def _fitted(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        def height(part: RenderableType) -> int:
            return len(console.render_lines(part, options.update(height=None), pad=False))

        left = max(2, options.size.height - 2)  # one says what is left out, one is the cursor's
        left_out = []
        for name, part in self.parts:
            versions = part.shortened() if isinstance(part, PlanTable) else [part]
            for version in versions:
                if height(version) <= left:
                    left -= height(version)
                    yield version
                    break
            else:
                left_out.append(name)
        if left_out:
            yield Text(f"no lines left for: {', '.join(left_out)}", style="dim")


@dataclass(frozen=True, kw_only=True)
class PlanTable:
    """Rows of short cells and a long plan, in rich's protocol.

    The plan is the last column, or on a narrow console below its row, so that it is never cut.

    Args:
        title: above the table.
        columns: titles of the short cells.
        rows: short cells, and the plan with what else is said of it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[Sequence[str], Text]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="table.title")
        lines = [self.columns, *(cells for cells, _ in self.rows)]
        widths = [max(cell_len(line[i]) for line in lines) for i in range(len(self.columns))]
        if options.max_width - sum(width + 2 for width in widths) < MIN_PLAN_WIDTH:
            yield from self._stacked(widths)
            return
        table = Table(expand=False, box=None)
        for name in self.columns:
            table.add_column(Text(name), justify="right")
        table.add_column("plan", overflow="fold")
        for cells, plan in self.rows:
            table.add_row(*map(Text, cells), plan)
        yield table

    def shortened(self) -> Iterator[PlanTable]:
        """The table, and then with ever fewer of its rows, of which the first ones stay."""
        yield self
        for count in range(len(self.rows) - 1, 0, -1):
            title = f"{self.title}: the first {count} of {len(self.rows)}"
            yield replace(self, title=title, rows=self.rows[:count])

    def _stacked(self, widths: Sequence[int]) -> Iterator[RenderableType]:
        def line(cells: Sequence[str], style: str = "") -> Text:
            padded = [" " * (w - cell_len(c)) + c for c, w in zip(cells, widths, strict=True)]
            return Text(" " + "  ".join(padded), style=style, overflow="fold")

        yield line(self.columns, "table.header")
        for cells, plan in self.rows:
            yield line(cells)
            yield Padding(plan, (0, 1, 0, 4))


class SearchDisplay:
    """A live view of a search; rich asks for it again and again.

    Args:
        name: of the study.
        objectives: what is weighed.
        workers: trials at a time.
        has_front: whether the best points so far are shown.
        is_live: whether it is on a terminal, where it also has a plot and the last trials, and
            takes no more lines than there are.
    """

    def __init__(
        self,
        name: str,
        objectives: Objectives,
        workers: int,
        *,
        has_front: bool = True,
        is_live: bool = False,
    ) -> None:
        self.name = name
        self.objectives = objectives
        self.workers = workers
        self.has_front = has_front
        self.is_live = is_live
        self.is_over = False
        self.started = time.time()
        self.snapshot: Snapshot | None = None
        self._updated = 0.0

    def update(self, make: Callable[[], Snapshot], *, now: bool = False) -> None:
        """Something happened; a snapshot is made if the last one is old, or one is wanted now."""
        if now or time.monotonic() - self._updated > UPDATE_SECONDS:
            self.snapshot, self._updated = make(), time.monotonic()

    def close(self, make: Callable[[], Snapshot]) -> None:
        """The search has ended: what is shown last stays, so it may take any number of lines."""
        self.is_over = True
        self.update(make, now=True)

    def __rich__(self) -> RenderableType:
        snapshot = self.snapshot
        if snapshot is None:
            return Text("starting ...")
        parts: list[tuple[str, RenderableType]] = [("progress", self._headline(snapshot))]
        best, baseline = snapshot.front, snapshot.baseline
        if self.is_live and self.has_front:
            plot = front_plot(snapshot.trained, best, baseline, self.objectives)
            parts.append(("plot", plot))
        if snapshot.running:
            parts.append(("running", self._running(snapshot)))
        if self.is_live and snapshot.latest:
            parts.append(("last trials", latest_table(snapshot.latest, self.objectives)))
        if best and self.has_front:
            parts.append(("front", front_table(best, baseline, self.objectives)))
        return Screen(parts=parts, fits=self.is_live and not self.is_over)

    def _headline(self, snapshot: Snapshot) -> RenderableType:
        left = snapshot.seconds_left(self.workers)
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            Text(self.name, style="bold"),
            ProgressBar(total=snapshot.budget, completed=snapshot.over, width=24),
            f"{snapshot.finished}/{snapshot.budget} finished",
            f"{snapshot.stopped} stopped early" if snapshot.stopped else "",
            f"{snapshot.over_limit} over a limit" if snapshot.over_limit else "",
            f"{len(snapshot.running)} running"
            + (f", {snapshot.elsewhere} elsewhere" if snapshot.elsewhere else ""),
            Text(f"{snapshot.failed} failed", style="red" if snapshot.failed else ""),
            f"{duration(time.time() - self.started)} gone",
            f"about {duration(left)} left" if left and snapshot.over < snapshot.budget else "",
        )
        return grid

    def _running(self, snapshot: Snapshot) -> PlanTable:
        axis, loss = self.objectives.axis, self.objectives.loss
        rows = []
        for trial in snapshot.running[:MAX_RUNNING_ROWS]:
            last = trial.last
            cells = [
                str(trial.number),
                f"{trial.cost:,}",
                duration(time.time() - trial.started),
                "" if last is None else str(last.seed),
                "" if last is None else str(last.num_updates),
                "" if last is None else f"{last.loss:.4f}",
            ]
            rows.append((cells, plain(str(trial.plan))))
        columns = ("trial", axis, "time", "seed", "updates", loss)
        return PlanTable(title="running", columns=columns, rows=rows)


def status_screen(status: Status, objectives: Objectives, *, fits: bool = False) -> Screen:
    """Where a study stands.

    Args:
        status: of the study.
        objectives: of the study.
        fits: leave out the parts that the terminal has no lines for.
    """
    parts: list[tuple[str, RenderableType]] = [("counts", _counts(status))]
    best, baseline = tuple(status.front), status.baseline
    parts.append(("plot", front_plot(status.finished, best, baseline, objectives)))
    if status.unfinished:
        parts.append(("running", _unfinished_table(status, objectives)))
    if status.failed:
        parts.append(("failures", _failures(status.failed)))
    if status.over:
        parts.append(("last trials", latest_table(status.over[-LATEST:], objectives)))
    if best:
        parts.append(("front", front_table(best, baseline, objectives)))
    return Screen(parts=parts, fits=fits, is_spaced=True)


def status_line(status: Status) -> str:
    """How many trials there are of each kind."""
    counts = [
        f"{len(status.finished)} of {status.budget} finished",
        f"{len(status.stopped)} stopped early",
        *([f"{len(status.over_limit)} over a limit"] if status.over_limit else []),
        f"{len(status.running)} running",
        *([f"{len(status.interrupted)} interrupted"] if status.interrupted else []),
        f"{len(status.failed)} failed",
    ]
    return ", ".join(counts)


def rate_text(status: Status) -> str:
    """How many drivers live, how fast trials end, and how long those that are left will take."""
    rate, left, drivers = status.trials_an_hour, status.seconds_left, len(status.drivers)
    texts = [f"{drivers or 'no'} {'driver lives' if drivers < 2 else 'drivers live'}"]
    if rate is not None:
        texts.append(f"{rate:,.0f} trials an hour" if rate >= 100 else f"{rate:.3g} trials an hour")
    if left is not None:
        texts.append(f"about {duration(left)} left")
    return ", ".join(texts)


def _counts(status: Status) -> Text:
    lines = [f"{status.name}: {status_line(status)}"]
    others = Counter(state_text(trial) for trial in status.trials if not trial.counts)
    about = [rate_text(status), f"{len(status.trials)} trials in all"]
    about[-1] += "".join(f", {number} {state}" for state, number in sorted(others.items()))
    lines.append("; ".join(about))
    for beside in status.beside:
        if beside.running or beside.drivers:
            state = f"{beside.running} running, drivers: {', '.join(beside.drivers) or 'none'}"
        else:
            state = "nothing running"
        failed = f", {beside.failed} failed" if beside.failed else ""
        lines.append(f"beside, {beside.name}: {beside.finished} finished{failed}, {state}")
    return plain("\n".join(lines))


def _unfinished_table(status: Status, objectives: Objectives) -> PlanTable:
    """What is not over; updates and loss are of the first seed's last validation."""
    rows = []
    for running in (*status.running, *status.interrupted)[:MAX_RUNNING_ROWS]:
        trial = running.trial
        updates = max(trial.curve, default=None)
        cells = [
            str(trial.number),
            cost_text(objectives.axis, trial.cost),
            "" if trial.started is None else duration(status.now - trial.started),
            "" if updates is None else f"{updates:,}",
            "" if updates is None else f"{trial.curve[updates]:.4f}",
        ]
        driver = running.driver or "unknown"
        about = f"  by {driver}" if running.is_alive else f"  interrupted; its driver was {driver}"
        rows.append((cells, plain(trial.text).append(plain(about).plain, style="dim")))
    columns = ("trial", _words(objectives.axis), "begun ago", "updates", _words(objectives.loss))
    shown = "" if len(rows) == len(status.unfinished) else f" ({len(status.unfinished)} trials)"
    title = "running" if status.running else "interrupted"
    return PlanTable(title=f"{title}{shown}", columns=columns, rows=rows)


def _failures(failed: Sequence[TrialRecord]) -> Text:
    """The latest failures with their reasons."""
    lines = [failure_text(trial, brief=True) for trial in failed[-LATEST:]]
    if len(failed) > LATEST:
        lines.insert(0, f"{len(failed)} trials failed, the latest:")
    text = plain("\n".join(lines))
    text.stylize("red")
    return text


def failure_text(trial: TrialRecord, *, brief: bool = False) -> str:
    """Why a trial failed.

    Args:
        trial: that it is about.
        brief: of a reason of many lines only the first and the last one, and where its logs are.
    """
    kind = "" if trial.failure is None else f" ({trial.failure})"
    reason = trial.reason or "no reason on record"
    return f"trial {trial.number} failed{kind}: {_brief(reason, trial) if brief else reason}"


def _brief(reason: str, trial: TrialRecord) -> str:
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
        trained: the finished trials.
        front: those of them that no other dominates.
        baseline: if it is finished.
        objectives: of the study.
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
        x_name=cost_words(objectives.axis),
        y_name=plain(f"{objectives.quality}{left_out}").plain,
        x_text=lambda value: cost_text(objectives.axis, value),
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
        trials: the last one at the end.
        objectives: of the study.
    """
    rows = []
    for trial in reversed(trials):
        cells = [
            str(trial.number),
            "finished" if trial.is_trained else state_text(trial),
            cost_text(objectives.axis, trial.cost),
            "" if trial.loss is None else f"{trial.loss:.4f}",
            duration(trial.seconds),
        ]
        has_reason = trial.reason is not None and not trial.is_trained
        reason = f"\n{_brief(trial.reason or '', trial)}" if has_reason else ""
        rows.append((cells, plain(trial.text + reason)))
    columns = ("trial", "", _words(objectives.axis), _words(objectives.loss), "trained for")
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
    columns = ["trial", objectives.axis, "change", *(["effective"] if effective else [])]
    columns += [*further, objectives.loss, "change"]
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
    return PlanTable(title=title, columns=[_words(name) for name in columns], rows=lines)


def _words(name: str) -> str:
    return name.replace("_", " ")


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


def findings_table(findings: Sequence[StepOutcome]) -> Table:
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


def _step_text(finding: StepOutcome) -> Text:
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
