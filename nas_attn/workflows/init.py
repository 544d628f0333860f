"""Write a first study file."""

from __future__ import annotations

from pathlib import Path

from nas_attn.errors import ConfigError, UsageError
from nas_attn.study.draft import StudyDraft
from nas_attn.study.study import Study
from nas_attn.yaml_file import parse_yaml


def write_study(draft: StudyDraft, out: Path | None = None, *, replace: bool = False) -> Path:
    """Write a study file that `nas-attn check` accepts.

    Args:
        draft: What it says.
        out: The file; NAME.yaml in the current folder if left out.
        replace: Overwrite a file that exists.

    Returns:
        The file.

    Raises:
        ConfigError: The study would be refused; lists everything wrong with it, by key path.
        UsageError: The file exists or cannot be written, or there is nothing to train on.
    """
    path = Path(f"{draft.study_name}.yaml") if out is None else out
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{path} is no name of a study file, which ends in .yaml")
    if path.exists() and not replace:
        raise UsageError(f"{path} exists; name another file with --out, or overwrite it: --replace")
    text = draft.yaml()
    _check_limits(Study.from_config(parse_yaml(text)), draft)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    return path


def _check_limits(study: Study, draft: StudyDraft) -> None:
    """See that a model of the study is within the budget, as far as that can be counted yet."""
    counted = study if study.data_folder.is_dir() else study.estimated()
    if counted is None:
        return
    try:
        counted.check_limits()
    except ConfigError as error:
        if [fault.key for fault in error.faults] != ["objectives.limits.total"]:
            raise
        raise UsageError(
            f"--budget {draft.budget}: {error.faults[0].message}; give a larger budget, or a "
            "smaller model with --width or --layers"
        ) from None
