"""A study's data before it is judged: overrides of its values, and paths relative to a folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_attn.errors import ConfigError, ConfigIssue, UsageError
from nas_attn.study.config import StudyConfig
from nas_attn.yaml_file import override, parse_yaml, plain_copy

Overrides = Sequence[str] | Mapping[str, Any]
"""`KEY.PATH=VALUE` texts, whose values are YAML, or one such text, or sections in sections."""

PATHS = (("data", "folder"), ("data", "text", "folder"), ("replay", "curves"), ("space",))
"""Where a study may name files and folders; a space only with the ending of a file."""


def tree_of(config: Mapping[str, Any] | StudyConfig, source: str) -> dict[str, Any]:
    """A study's sections as a file would give them, in a copy.

    Args:
        config: Sections, with paths as text or `Path`; or a configuration.
        source: Name that messages give.

    Raises:
        ConfigError: there is something in it that no file can hold.
    """
    if isinstance(config, StudyConfig):
        config = config.model_dump(exclude_unset=True)
    try:
        tree = plain_copy(_without_paths(config))
    except RecursionError:
        raise ConfigError(source, [ConfigIssue("(file)", "a section that holds itself")]) from None
    except ValueError as error:
        raise ConfigError(source, [ConfigIssue("(file)", str(error))]) from None
    if not isinstance(tree, dict):
        raise ConfigError(source, [ConfigIssue("(file)", "must be a mapping of keys")])
    return tree


def overridden(tree: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A study's data with some values replaced.

    Args:
        tree: Sections and values, changed in place.
        overrides: Values that replace others.

    Raises:
        ConfigError: an override is not of this form.
    """
    if isinstance(overrides, Mapping):
        _merge(tree, tree_of(overrides, "overrides"))
    else:
        for text in _texts(overrides):
            override(tree, text)
    return tree


def joined(overrides: Overrides, changes: Mapping[str, Any]) -> Overrides:
    """Overrides, and behind them others, which win.

    Args:
        overrides: Overrides, which stay as they are.
        changes: Sections with the values that win.
    """
    if isinstance(overrides, Mapping):
        return overridden(tree_of(overrides, "overrides"), changes)
    return [*_texts(overrides), *override_texts(changes, changes)]


def override_texts(overrides: Overrides, tree: Mapping[str, Any]) -> list[str]:
    """Overrides as a command line has them.

    Args:
        overrides: Values that replace others.
        tree: Data whose values they replace; what is no section there is replaced as a whole.
    """
    if not isinstance(overrides, Mapping):
        return _texts(overrides)
    leaves = _leaves(tree_of(overrides, "overrides"), tree)
    return [f"{key}={yaml_text(value)}" for key, value in leaves]


def relative_to(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A study's data with its relative paths made relative to a folder.

    Args:
        tree: Sections and values, changed in place.
        folder: Folder that relative paths start from.
    """
    for *parents, last in PATHS:
        section: Any = tree
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            continue
        said = section.get(last)
        if not isinstance(said, str) or said == "" or said.startswith("~"):
            continue
        if last != "space" or said.endswith((".yaml", ".yml")):
            section[last] = str(folder / said)
    return tree


def _merge(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def _leaves(
    changes: Mapping[str, Any], tree: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in changes.items():
        section = tree.get(key)
        if isinstance(value, dict) and value and isinstance(section, dict):
            found += _leaves(value, section, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def yaml_text(value: Any) -> str:
    """A value as YAML in one line; a word that is read as one stands without quotes."""
    with contextlib.suppress(ValueError):
        if isinstance(value, str) and value == parse_yaml(value):
            return value
    return json.dumps(value, ensure_ascii=False)


def _texts(overrides: Sequence[str]) -> list[str]:
    return [overrides] if isinstance(overrides, str) else list(overrides)


def _without_paths(value: Any) -> Any:
    """Paths as text and tuples as lists, as a file has them."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    return [_without_paths(item) for item in value] if isinstance(value, list | tuple) else value


def execution_overrides(
    overrides: Overrides = (),
    *,
    trials: int | None = None,
    workers: int | None = None,
    storage: str | None = None,
    executor: str | None = None,
    address: str | None = None,
) -> Overrides:
    """Overrides with what `search` takes as arguments behind them.

    Raises:
        UsageError: An executor other than Ray is given an address.
    """
    if address is not None and executor not in (None, "ray"):
        raise UsageError(f"--address is of a Ray cluster, which the executor {executor} has not")
    execution = {
        "workers": workers,
        "storage": storage,
        "executor": executor or (None if address is None else "ray"),
    }
    given = {name: value for name, value in execution.items() if value is not None}
    changes: dict[str, Any] = {} if trials is None else {"search": {"trials": trials}}
    return joined(overrides, changes | ({"execution": given} if given else {}))
