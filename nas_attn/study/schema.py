"""JSON Schemas of study and search-space files, by which editors complete and check them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from nas_attn.space import SpaceConfig
from nas_attn.study.config import StudyConfig

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def study_schema() -> dict[str, Any]:
    """The JSON Schema of study files, with a description of every key."""
    return _schema(StudyConfig, "nas-attn study")


def space_schema() -> dict[str, Any]:
    """The JSON Schema of search-space files, with a description of every key."""
    return _schema(SpaceConfig, "nas-attn search space")


def _schema(model: type[BaseModel], title: str) -> dict[str, Any]:
    schema = model.model_json_schema() | {"title": title}
    return {"$schema": DIALECT, **_without_line_breaks(schema)}


def _without_line_breaks(node: Any) -> Any:
    """A schema whose descriptions are single lines."""
    if isinstance(node, list):
        return [_without_line_breaks(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: " ".join(value.split())
        if key == "description" and isinstance(value, str)
        else _without_line_breaks(value)
        for key, value in node.items()
    }
