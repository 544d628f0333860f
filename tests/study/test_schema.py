"""JSON Schemas: every key has a description, and shipped files are as they say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from nas_attn.study.schema import space_schema, study_schema
from nas_attn.study.shipped import shipped_folder, shipped_names
from nas_attn.yaml_file import parse_yaml, read_yaml

SCHEMAS = {"studies": study_schema(), "search_spaces": space_schema()}
VALIDATORS = {name: jsonschema.Draft202012Validator(schema) for name, schema in SCHEMAS.items()}


def keys(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All keys of all sections of a schema."""
    for section, found in {"": schema, **schema.get("$defs", {})}.items():
        for name, about in found.get("properties", {}).items():
            yield f"{section}.{name}", about


@pytest.mark.parametrize("folder", SCHEMAS)
def test_every_key_has_a_description(folder: str) -> None:
    described = {name: about.get("description", "") for name, about in keys(SCHEMAS[folder])}
    assert len(described) > (60 if folder == "studies" else 5)
    assert [name for name, text in described.items() if not text.endswith((".", ".)"))] == []
    assert not any("\n" in text for text in described.values())


@pytest.mark.parametrize("folder", SCHEMAS)
def test_shipped_files_are_as_the_schema_says(folder: str) -> None:
    VALIDATORS[folder].check_schema(SCHEMAS[folder])
    for name in shipped_names(folder):
        VALIDATORS[folder].validate(read_yaml(shipped_folder(folder) / f"{name}.yaml"))


@pytest.mark.parametrize(
    "text",
    [
        "search: {warm_start: baseline}",
        "search: {warm_start: {source: baseline, fraction: auto}}",
        "objectives: {limits: {total: 20M}}",
        "space: {schemes: {collaborative: {shared_dim: [32]}}}",
    ],
)
def test_short_forms_are_in_the_schema(text: str) -> None:
    start = "name: a\ndata: {folder: b}\ntraining: {arguments: {lr: 0.1}}\n"
    start += "" if "space" in text else "space: per_layer\n"
    VALIDATORS["studies"].validate(parse_yaml(start + text))


@pytest.mark.parametrize(
    "text", ["search: {trails: 3}", "search: {trials: 0}", "spaces: per_layer"]
)
def test_the_schema_refuses(text: str) -> None:
    start = "name: a\ndata: {folder: b}\ntraining: {arguments: {lr: 0.1}}\nspace: per_layer\n"
    with pytest.raises(jsonschema.ValidationError):
        VALIDATORS["studies"].validate(parse_yaml(start + text))
