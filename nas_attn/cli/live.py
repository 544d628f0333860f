"""Progress of a workflow on the terminal: a live display, or plain lines where there is none."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.live import Live

from nas_attn.cli.console import console, interruptible, say
from nas_attn.cli.loudness import is_quiet, is_verbose
from nas_attn.cli.parts import plain
from nas_attn.cli.screens import SearchDisplay, rate_text, status_line
from nas_attn.cli.screens import status_screen as screen_of
from nas_attn.cli.trial_tables import failure_text
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.snapshot import Snapshot
from nas_attn.engine.status import Status
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.workflows.events import LogEvents, Run

if TYPE_CHECKING:
    from nas_attn.api import Results

logger = logging.getLogger(__name__)

QUIET = logging.getLogger("nas_attn.engine.loop")
"""Says line by line what a live display shows."""


class TerminalEvents(LogEvents):
    """A live display on a terminal; elsewhere lines, and at the end what it would show.

    Quiet, nothing but failures.
    """

    def __init__(self) -> None:
        super().__init__()
        self._display: SearchDisplay | None = None
        self._live: Live | None = None
        self._level = logging.NOTSET

    def on_message(self, text: str) -> None:
        if not is_quiet():
            say(text)

    def on_failure(self, trial: TrialRecord) -> None:
        say_failure(trial)

    def on_start(self, run: Run, snapshot: Callable[[], Snapshot]) -> None:
        super().on_start(run, snapshot)
        if is_quiet():
            return
        self._display = SearchDisplay(
            f"{run.title}, {run.part}" if run.part else run.title,
            run.objectives,
            run.workers,
            has_front=run.is_search,
            is_last=run.is_last,
            is_live=console.is_terminal,
        )
        self._display.update(snapshot)
        if console.is_terminal:
            self._level = QUIET.level
            QUIET.setLevel(logging.NOTSET if is_verbose() else logging.WARNING)
            self._live = Live(self._display, console=console, refresh_per_second=2)
            self._live.start()

    def on_change(self, snapshot: Callable[[], Snapshot]) -> None:
        if self._live is not None and self._display is not None:
            self._display.update(snapshot)
        else:
            super().on_change(snapshot)

    def on_end(self, snapshot: Callable[[], Snapshot] | None) -> None:
        display, live = self._display, self._live
        self._display = self._live = None
        if display is not None and snapshot is not None:
            display.close(snapshot)
            if live is None:
                console.print(display)
        if live is not None:
            live.stop()
            QUIET.setLevel(self._level)


def say_failure(trial: TrialRecord, what: str = "") -> None:
    """Print why a trial failed; arguments as for `failure_text`."""
    console.print(plain(failure_text(trial, what=what)), style="red")


def watch_page(results: Results, out: Path | None, seconds: float) -> Path:
    """Write a study's report again and again, until its search is over, or Ctrl-C.

    Args:
        results: What the study has found.
        out: Folder of the report; the run folder's `report` if None.
        seconds: Seconds between two pages.

    Returns:
        The page.
    """
    from nas_attn.workflows.live_report import watch_report

    folder = results.folder / "report" if out is None else out
    said: list[str] = []

    def on_page(page: Path, status: Status) -> None:
        line = status_line(status)
        if said[-1:] != [line]:
            logger.info("%s: %s", page, line)
            said.append(line)

    with contextlib.suppress(KeyboardInterrupt), interruptible():
        watch_report(results.form, results.store, folder, seconds, on_page)
    return folder / "index.html"


def watch_status(look: Callable[[], Status], objectives: Objectives, seconds: float) -> None:
    """Show a status again and again, until Ctrl-C: in place on a terminal, else lines at changes.

    Args:
        look: Reads the status.
        objectives: Objectives of the study.
        seconds: Between two looks.
    """
    with contextlib.suppress(KeyboardInterrupt), interruptible():
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                while True:
                    live.update(screen_of(look(), objectives, fits=True), refresh=True)
                    time.sleep(seconds)
        said = None
        while True:
            status = look()
            counts = status_line(status), len(status.active_drivers)
            if counts != said:
                logger.info("%s; %s", counts[0], rate_text(status))
                said = counts
            time.sleep(seconds)
