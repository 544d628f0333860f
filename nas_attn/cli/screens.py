"""A search while it runs, and where a study stands, as rich renderables."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence

from rich.columns import Columns
from rich.console import ConsoleRenderable, RenderableType, RichCast
from rich.progress_bar import ProgressBar
from rich.text import Text

from nas_attn.cli.parts import PlanTable, Screen, plain
from nas_attn.cli.trial_tables import failure_text, front_plot, front_table, latest_table, words
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.snapshot import LATEST, Snapshot
from nas_attn.engine.status import Status
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.report.formatting import cost_text, state_text
from nas_attn.trials.updates import Updates
from nas_attn.workflows.events import duration

MAX_RUNNING_ROWS = 16
UPDATE_SECONDS = 0.3


class SearchDisplay:
    """A live view of a search; rich asks for it again and again.

    Args:
        name: Name of the study.
        objectives: Objectives of the study.
        workers: Trials at a time.
        has_front: Whether the best points so far are shown.
        is_last: Whether they are shown at the end, as no further part of the search follows.
        is_live: Whether it is on a terminal, where it also has a plot and the last trials, and
            takes no more lines than there are.
    """

    def __init__(
        self,
        name: str,
        objectives: Objectives,
        workers: int,
        *,
        has_front: bool = True,
        is_last: bool = True,
        is_live: bool = False,
    ) -> None:
        self.name = name
        self.objectives = objectives
        self.workers = workers
        self.has_front = has_front
        self.is_last = is_last
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
        self.has_front = self.has_front and self.is_last
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
        texts: list[Text | str] = [
            f"{snapshot.finished}/{snapshot.budget} finished",
            f"{snapshot.stopped} stopped early" if snapshot.stopped else "",
            f"{snapshot.over_limit} over a limit" if snapshot.over_limit else "",
            f"{len(snapshot.running)} running"
            + (f", {snapshot.elsewhere} elsewhere" if snapshot.elsewhere else ""),
            Text(f"{snapshot.failed} failed", style="red" if snapshot.failed else ""),
            f"{duration(time.time() - self.started)} elapsed",
            f"about {duration(left)} left" if left and snapshot.over < snapshot.budget else "",
        ]
        bar = ProgressBar(total=snapshot.budget, completed=snapshot.over, width=24)
        # In as many lines as it takes: a grid of one row breaks words where it is too narrow.
        parts: list[ConsoleRenderable | RichCast | str] = [
            Text(self.name, style="bold"),
            bar,
            *(text for text in texts if text),
        ]
        return Columns(parts, padding=(0, 2))

    def _running(self, snapshot: Snapshot) -> PlanTable:
        axis, loss = self.objectives.primary_cost, self.objectives.metric
        rows = []
        has_gpus = any(trial.gpus is not None for trial in snapshot.running)
        for trial in snapshot.running[:MAX_RUNNING_ROWS]:
            last = trial.last
            cells = [
                str(trial.number),
                f"{trial.cost:,}",
                duration(time.time() - trial.started),
                _seed_text(trial.updates, None if last is None else last.seed),
                _updates_text(trial.updates, None if last is None else last.num_updates),
                "" if last is None else f"{last.loss:.4f}",
                *([_gpus_text(trial.gpus)] if has_gpus else []),
            ]
            rows.append((cells, plain(str(trial.plan))))
        columns = ("trial", axis, "time", "seed", "updates", loss, *(["GPUs"] if has_gpus else []))
        return PlanTable(title="running", columns=columns, rows=rows)


def status_screen(status: Status, objectives: Objectives, *, fits: bool = False) -> Screen:
    """Where a study stands.

    Args:
        status: Status of the study.
        objectives: Objectives of the study.
        fits: Whether the parts that the terminal has no lines for are left out.
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
    beside = sum(child.running for child in status.children if child.drivers)
    counts = [
        f"{len(status.finished)} of {status.budget} finished",
        f"{len(status.stopped)} stopped early",
        *([f"{len(status.over_limit)} over a limit"] if status.over_limit else []),
        f"{len(status.running)} running"
        + (f" and {beside} beside" if beside and not status.running else ""),
        *([f"{len(status.interrupted)} interrupted"] if status.interrupted else []),
        f"{len(status.failed)} failed",
    ]
    return ", ".join(counts)


def rate_text(status: Status) -> str:
    """How many drivers are active, how fast trials end, and how long the rest will take."""
    rate, left, drivers = status.trials_an_hour, status.seconds_left, len(status.active_drivers)
    texts = [f"{drivers or 'no'} {'driver' if drivers < 2 else 'drivers'} active"]
    if drivers and not status.drivers:
        names = " and ".join(child.name for child in status.children if child.drivers)
        texts[0] += plain(f" on {names}").plain
    if rate is not None:
        texts.append(f"{rate:,.0f} trials an hour" if rate >= 100 else f"{rate:.3g} trials an hour")
    if left is not None:
        texts.append(f"about {duration(left)} left")
    return ", ".join(texts)


def _counts(status: Status) -> Text:
    lines = [f"{status.name}: {status_line(status)}"]
    others = Counter(state_text(trial) for trial in status.trials if not trial.uses_budget)
    count = len(status.trials)
    about = [rate_text(status), "1 trial in all" if count == 1 else f"{count} trials in all"]
    about[-1] += "".join(f", {number} {state}" for state, number in sorted(others.items()))
    lines.append("; ".join(about))
    for child in status.children:
        if child.running or child.drivers:
            state = f"{child.running} running, drivers: {', '.join(child.drivers) or 'none'}"
        else:
            state = "nothing running"
        failed = f", {child.failed} failed" if child.failed else ""
        lines.append(f"beside, {child.name}: {child.finished} finished{failed}, {state}")
    return plain("\n".join(lines))


def _unfinished_table(status: Status, objectives: Objectives) -> PlanTable:
    """What is not over; the loss is of the first seed's last validation."""
    rows = []
    has_gpus = any(running.trial.gpus is not None for running in status.running)
    for running in (*status.running, *status.interrupted)[:MAX_RUNNING_ROWS]:
        trial = running.trial
        updates = max(trial.curve, default=None)
        cells = [
            str(trial.number),
            cost_text(objectives.primary_cost, trial.cost),
            "" if trial.started is None else duration(status.now - trial.started),
            _seed_text(running.updates),
            _updates_text(running.updates, updates),
            "" if updates is None else f"{trial.curve[updates]:.4f}",
            *([_gpus_text(trial.gpus if running.is_alive else None)] if has_gpus else []),
        ]
        driver = running.driver or "unknown"
        about = f"  by {driver}" if running.is_alive else f"  interrupted; its driver was {driver}"
        rows.append((cells, plain(trial.text).append(plain(about).plain, style="dim")))
    columns = (
        "trial",
        words(objectives.primary_cost),
        "running for",
        "seed",
        "updates",
        words(objectives.metric),
        *(["GPUs"] if has_gpus else []),
    )
    shown = "" if len(rows) == len(status.unfinished) else f" ({len(status.unfinished)} trials)"
    title = "running" if status.running else "interrupted"
    return PlanTable(title=f"{title}{shown}", columns=columns, rows=rows)


def _seed_text(updates: Updates | None, validated: int | None = None) -> str:
    """The seed that trains; else that which last validated, if one has."""
    seed = validated if updates is None or updates.seed is None else updates.seed
    return "" if seed is None else str(seed)


def _updates_text(updates: Updates | None, validated: int | None) -> str:
    """Updates of a training, by its log; else those at which it last validated, if it has."""
    if updates is not None:
        return updates.text
    return "" if validated is None else f"{validated:,}"


def _gpus_text(gpus: str | None) -> str:
    """Which GPUs a trial has; of a UUID its beginning, which CUDA takes, too."""
    return plain(re.sub(r"(GPU|MIG)-([0-9a-f]{8})[0-9a-f-]*", r"\1-\2", gpus or "")).plain


def _failures(failed: Sequence[TrialRecord]) -> Text:
    """The latest failures with their reasons."""
    lines = [failure_text(trial, brief=True) for trial in failed[-LATEST:]]
    if len(failed) > LATEST:
        lines.insert(0, f"{len(failed)} trials failed, the latest:")
    text = plain("\n".join(lines))
    text.stylize("red")
    return text
