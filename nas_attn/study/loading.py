"""Reads study files."""

from __future__ import annotations

from pathlib import Path

from nas_attn.study.checks import judge
from nas_attn.study.shipped import find_file
from nas_attn.study.study import Study, typed_overrides
from nas_attn.study.tree import Overrides, overridden, override_texts
from nas_attn.yaml_file import read_yaml


def load_study(
    name: str,
    *,
    overrides: Overrides = (),
    runs: Path = Path("runs"),
    is_read_only: bool = False,
) -> Study:
    """Load a study file and check it whole.

    Args:
        name: Path of the file, or name of a shipped study.
        overrides: Values that replace those of the file.
        runs: Folder for run folders.
        is_read_only: Whether nothing is trained, so that flags of fairseq that a study may not set
            (but could, once) are passed over with a warning.

    Raises:
        ConfigError: lists everything that is wrong, by key path.
    """
    path = find_file(name, "studies")
    tree = read_yaml(path)
    texts = override_texts(overrides, tree)
    tree = overridden(tree, overrides)
    config, space = judge(tree, str(path), is_read_only=is_read_only)
    typed = (name, *typed_overrides(texts))
    if runs != Path("runs"):
        typed += ("--runs", str(runs))
    return Study(config, space, runs.absolute(), typed)
