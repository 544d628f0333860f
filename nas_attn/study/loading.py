"""Reads studies: of their files, or of their run folders."""

from __future__ import annotations

import contextlib
from pathlib import Path

from nas_attn.errors import ConfigError
from nas_attn.study.checks import judge
from nas_attn.study.recorded import is_run_folder, open_run_folder, recorded_tree
from nas_attn.study.shipped import find_file, known_studies
from nas_attn.study.study import Study, typed_overrides
from nas_attn.study.tree import Overrides, overridden, override_texts
from nas_attn.yaml_file import read_yaml


def load_study(
    name: str | Path,
    *,
    overrides: Overrides = (),
    runs: Path = Path("runs"),
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
    path = find_study(name, runs)
    folder = None if path.is_file() else path.absolute()
    tree = read_yaml(path) if folder is None else recorded_tree(open_run_folder(path))
    recorded = tree.get("name")
    texts = override_texts(overrides, tree)
    tree = overridden(tree, overrides)
    config, space = judge(tree, str(path), is_read_only=is_read_only)
    typed = (str(name), *typed_overrides(texts))
    if runs != Path("runs"):
        typed += ("--runs", str(runs))
    if folder is None:
        return Study(config, space, runs.absolute(), typed)
    is_same = config.name == recorded
    return Study(config, space, folder.parent, typed, run_folder=folder if is_same else None)


def find_study(name: str | Path, runs: Path = Path("runs")) -> Path:
    """The file or the run folder that is meant by a path or a name.

    Files come first: a path with an ending, a shipped name, NAME.yaml in the current folder. Then
    run folders: a path, a name in `runs`. A `Path` that is a run folder is never a shipped name.

    Args:
        name: Path or name.
        runs: Folder that holds run folders.

    Raises:
        ConfigError: there is neither; proposes the most similar name.
    """
    if isinstance(name, Path) and is_run_folder(name):
        return name
    try:
        return find_file(str(name), "studies", known=lambda: known_studies(runs))
    except ConfigError:
        with contextlib.suppress(OSError):  # a name that no file can have
            for folder in (Path(name), runs / name):
                if is_run_folder(folder):
                    return folder
            if Path(name).is_dir():
                return Path(name)  # of which `open_run_folder` says what it lacks
        raise
