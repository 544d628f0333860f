"""Former names of YAML keys, flags and Python names: accepted for a while, with a FutureWarning.

A FutureWarning is shown to users by default, other than a DeprecationWarning.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, TypeVar

from nas_attn.errors import UsageError

Value = TypeVar("Value")


PASSED_OVER = frozenset({"click", "nas_attn", "pydantic", "typer"})
"""Packages whose lines are not to blame for a former name."""


class FormerNameWarning(FutureWarning):
    """Something was asked for by a name that it had before."""


def warn_renamed(kind: str, old: str, new: str) -> None:
    """Say that something has another name now, of the line in a user's own code that asked for it.

    Args:
        kind: Kind of thing that was renamed, such as "key" or "option".
        old: Former name.
        new: Present name.
    """
    warnings.warn(
        f"the {kind} {old} is called {new} now; the former name will go in a later version",
        FormerNameWarning,
        stacklevel=_users_level(),
    )


def _users_level() -> int:
    """How many frames the first line outside `PASSED_OVER` is above `warn_renamed`, as
    `warnings.warn` counts."""
    frame, level = sys._getframe(1), 1
    while _package(frame) in PASSED_OVER and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    return level


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def renamed_key(data: Any, old: str, new: str, *, section: str = "") -> Any:
    """Accept a former key of a file's section; for a `model_validator(mode="before")` of pydantic.

    Args:
        data: The section as it was read; anything but a mapping is left to pydantic.
        old: The former key.
        new: The key.
        section: Dotted path of the section, for messages.

    Returns:
        The section with `new` in the place of `old`; the very same if it has no `old`.

    Raises:
        ValueError: The section has both.
    """
    if not isinstance(data, Mapping) or old not in data:
        return data
    if new in data:
        raise ValueError(f"{old} is the former name of {new}: give one of them")
    prefix = f"{section}." if section else ""
    warn_renamed("key", f"{prefix}{old}", f"{prefix}{new}")
    return {new if key == old else key: value for key, value in data.items()}


def renamed_option(old: str, new: str, given: Value | None, value: Value | None) -> Value | None:
    """Accept a former flag of the command, which is hidden from its help.

    Args:
        old: The former flag, such as `--no-test-side`.
        new: The flag.
        given: Value that was given by the former flag; None if none was.
        value: Value that was given by the flag; None if none was.

    Returns:
        What was given by either.

    Raises:
        UsageError: Both were given, and differ.
    """
    if given is None:
        return value
    if value is not None and value != given:
        raise UsageError(f"{old} is the former name of {new}: give one of them")
    warn_renamed("option", old, new)
    return given


def renamed_argument(old: str, new: str, given: Value, value: Value | None) -> Value:
    """Accept a former argument of a function.

    Args:
        old: The former name.
        new: The name.
        given: Value that was given by the former name.
        value: Value that was given by the name; None if none was.

    Returns:
        What was given by the former name.

    Raises:
        ValueError: Both were given.
    """
    if value is not None:
        raise ValueError(f"{old} is the former name of {new}: give one of them")
    warn_renamed("argument", old, new)
    return given


def renamed_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Accept former names of a module.

    Written `__getattr__ = renamed_names(__name__, {"Old": "New"})` in it.

    Args:
        module: Full name of the module.
        names: Names by former names.

    Returns:
        A function for the module's `__getattr__`.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed("name", f"{module}.{name}", f"{module}.{names[name]}")
        return getattr(sys.modules[module], names[name])

    return get
