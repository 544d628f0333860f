"""Where the files of a trial are today."""

from __future__ import annotations

from pathlib import Path


def folder_today(recorded: str, run: Path) -> Path:
    """The folder of a trial; that in the study's run folder of today, if the run folder was moved.

    Args:
        recorded: Folder of the trial as the record has it.
        run: Run folder of the study.
    """
    folder = Path(recorded)
    if folder.is_dir():
        return folder
    moved = run.absolute() / "trials" / folder.name
    return moved if moved.is_dir() else folder
