"""What is installed: the wheel holds all that is read at run time."""

from __future__ import annotations

import pytest

from tests.helpers.paths import ROOT

wheel = pytest.importorskip("hatchling.builders.wheel")
SHIPPED = {"search_spaces": "*.yaml", "studies": "*.yaml", "studies/tables": "*"}


def test_the_wheel_holds_what_is_no_python() -> None:
    """Templates, styles, scripts and tables of packages, and shipped studies and spaces."""
    builder = wheel.WheelBuilder(str(ROOT))
    held = {file.distribution_path for file in builder.recurse_included_files()}
    forced = builder.config.force_include
    held |= {file.distribution_path for file in builder.recurse_forced_files(forced)}
    wanted = {
        str(path.relative_to(ROOT))
        for package in ("nas_attn", "fairseq_plugin")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    for folder, pattern in SHIPPED.items():
        wanted |= {f"nas_attn/{folder}/{path.name}" for path in (ROOT / folder).glob(pattern)}
    assert {"nas_attn/study/draft.yaml", "nas_attn/studies/demo.yaml"} <= wanted
    assert wanted <= held, wanted - held
