"""Loads studies, of their files or of their run folders."""

from __future__ import annotations

from pathlib import Path

from nas_attn.study.form import RUNS, read_form
from nas_attn.study.study import Study
from nas_attn.study.tree import Overrides


def load_study(
    name: str | Path,
    *,
    overrides: Overrides = (),
    runs: Path = RUNS,
    is_read_only: bool = False,
) -> Study:
    """Load a study and check it whole.

    Args:
        name: Path of its file, name of a shipped study, name of NAME.yaml in the current folder, or
            a run folder: its path, or its name in `runs`.
        overrides: Values that replace those of the file.
        runs: Folder for run folders.
        is_read_only: Whether nothing is trained, so that flags of fairseq that a study may not set
            (but could, once) are passed over with a warning.

    Raises:
        ConfigError: lists everything that is wrong, by key path.
        UsageError: a run folder holds no settings.
    """
    return Study.judged(read_form(name, overrides=overrides, runs=runs), is_read_only=is_read_only)
