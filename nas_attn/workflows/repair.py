"""Make a damaged record readable again."""

from __future__ import annotations

from pathlib import Path

from nas_attn.engine.repair import Repair, repair_journal
from nas_attn.engine.storage import JOURNAL
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.study.form import StudyForm


def repair_record(study: StudyForm) -> tuple[Path, Repair]:
    """Repair the journal of a study.

    Returns:
        The journal, and what was done.

    Raises:
        UsageError: The record is not in a journal file.
        NasAttnError: No search has run.
    """
    path = study.folder / JOURNAL
    if study.config.execution.storage is not None:
        raise UsageError("only a record in a journal file is repaired, but this one is elsewhere")
    if not path.is_file():
        raise NasAttnError(f"no search has run in {study.folder} yet")
    done = repair_journal(
        path,
        study.config.name,
        [direction.value for direction in study.objectives.directions],
        grace_seconds=study.config.execution.grace_seconds,
    )
    return path, done
