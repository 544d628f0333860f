"""The base of every section of a study file: frozen, and strict about keys and types."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

from nas_attn.errors import ConfigIssue
from nas_attn.literals import did_you_mean

LONGEST_SAID = 100
"""Characters of a wrong value that a message repeats."""


LONGEST_NAME = 255
LONGEST_PATH = 4096
"""Bytes of a file's name and of a path, on most systems."""


class ConfigModel(BaseModel):
    """A part of a file; unknown keys, wrong types and infinite numbers are faults.

    The text below a key is its description, in the JSON Schema and in the documentation.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def _check_scalar(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str):
        raise ValueError("must be a number, a word, true or false")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Scalar = Annotated[
    Any,
    AfterValidator(_check_scalar),
    WithJsonSchema({"type": ["boolean", "number", "string"]}),
]
"""A single value; written so, and not as a union, it gives one finding and not four."""


def _to_path(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        return value
    if "\n" in value or "\0" in value:
        raise ValueError("must be one line")
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        user = Path(value).parts[0].removeprefix("~")
        raise ValueError(f"there is no home folder of {user!r}") from None
    names = [os.fsencode(part) for part in path.parts]
    if any(len(name) > LONGEST_NAME for name in names) or sum(map(len, names)) > LONGEST_PATH:
        raise ValueError(f"has a name of more than {LONGEST_NAME} bytes, which no file has")
    return path


FilePath = Annotated[Path, BeforeValidator(_to_path, json_schema_input_type=str)]
Count = Annotated[int, Field(ge=1)]


def faults_of(
    error: ValidationError, prefix: str = "", model: type[BaseModel] | None = None
) -> list[ConfigIssue]:
    """Pydantic's findings with dotted key paths and plain words.

    Args:
        error: Findings of pydantic.
        prefix: Key path of the section that was validated.
        model: Model of that section, whose keys are proposed where one is mistyped.
    """
    return [_fault(finding, prefix, model) for finding in error.errors()]


def _fault(finding: Any, prefix: str, model: type[BaseModel] | None) -> ConfigIssue:
    # Parts that are no keys of the file (names of union members and validators) hold a bracket.
    parts = [str(part) for part in finding["loc"] if "[" not in str(part)]
    key = ".".join([prefix, *parts] if prefix else parts) or "(file)"
    message = finding["msg"].removeprefix("Value error, ")
    if finding["type"] == "extra_forbidden":
        message = "unknown key" + _proposal(finding["loc"], model)
    elif finding["type"] == "missing":
        message = "is missing"
    elif "input" in finding and not isinstance(finding["input"], dict | list):
        said = repr(finding["input"])
        said = said if len(said) <= LONGEST_SAID else f"{said[:LONGEST_SAID]}..."
        message = f"{message[0].lower()}{message[1:]}, but is {said}"
    return ConfigIssue(key, message)


def _proposal(loc: Sequence[Any], model: type[BaseModel] | None) -> str:
    """The key that a mistyped one may have been meant for, in words."""
    for part in loc[:-1]:
        if "[" in str(part):  # a member of a union, whose model is found by its section
            continue
        field = model.model_fields.get(str(part)) if model is not None else None
        found = [] if field is None else list(_models_in(field.annotation))
        model = found[0] if len(found) == 1 else None
    known = [] if model is None else list(model.model_fields)
    return did_you_mean(str(loc[-1]), known)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
