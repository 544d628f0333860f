"""The report of a search while it runs: written again and again, by a command or beside it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nas_attn.engine.status import Status, read_status
from nas_attn.engine.store import TrialStore
from nas_attn.errors import NasAttnError
from nas_attn.study.form import StudyForm
from nas_attn.workflows.records import open_store
from nas_attn.workflows.reporting import NothingToReportError, write_study_report

logger = logging.getLogger(__name__)


def watch_report(
    study: StudyForm,
    store: TrialStore,
    out: Path,
    seconds: float,
    on_page: Callable[[Path, Status], None] = lambda page, status: None,
) -> Path:
    """Write a study's report every so many seconds, until its search is over.

    Pages reload themselves as often; the last one, of a study that is over, does not.

    Args:
        study: Study, or what its file says.
        store: Trials of the study.
        out: Folder of the report.
        seconds: Seconds between two pages.
        on_page: Function that is called with each page and what it was written of.

    Returns:
        The page.

    Raises:
        NasAttnError: The record cannot be read.
    """
    while True:
        status = _status(study, store)
        is_over = len(status.over) >= status.budget and not status.unfinished
        try:
            page = write_study_report(
                study, store, out, reload_seconds=None if is_over else seconds
            )
            on_page(page, status)
        except NothingToReportError:
            if is_over:
                raise
        else:
            if is_over:
                return page
        time.sleep(seconds)


@contextlib.contextmanager
def pages_beside(study: StudyForm, out: Path, seconds: float | None) -> Iterator[None]:
    """Write a study's report every so many seconds while something else runs, in a thread.

    Args:
        study: Study whose record is there.
        out: Folder of the report.
        seconds: Seconds between two pages; None writes none.
    """
    if seconds is None:
        yield
        return
    is_over = threading.Event()
    writer = threading.Thread(target=_write_until, args=(is_over, study, out, seconds), daemon=True)
    writer.start()
    try:
        yield
    finally:
        is_over.set()
        writer.join()


def _write_until(is_over: threading.Event, study: StudyForm, out: Path, seconds: float) -> None:
    """Write pages from a record of its own, which shares nothing with the search's."""
    store = open_store(study)
    while not is_over.wait(seconds):
        try:
            write_study_report(study, store, out, reload_seconds=seconds)
        except NothingToReportError:
            continue
        except (NasAttnError, OSError) as error:
            logger.warning("the report was not written: %s", error)


def _status(study: StudyForm, store: TrialStore) -> Status:
    return read_status(
        store,
        trials=study.config.search.trials,
        grace_seconds=study.config.execution.grace_seconds,
    )
