"""Programs of trials are found by what is installed, and run by this Python."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from nas_attn.errors import NasAttnError
from nas_attn.trials.processes import programs
from nas_attn.trials.processes.programs import PROGRAMS, executable_form, needs_fairseq
from tests.helpers.paths import ROOT

FORMER = {"nas-attn-measure": "nas_attn.fairseq_tools.measure"}
"""Modules that installations of an earlier version name; they are run as well."""


@pytest.fixture(autouse=True)
def _nothing_cached() -> Iterator[None]:
    programs._module_of.cache_clear()
    yield
    programs._module_of.cache_clear()


def test_our_own_are_installed_as_the_project_says() -> None:
    """An installation from before a program came to pyproject.toml does not know it."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {name for name in PROGRAMS if name.startswith("nas-attn")}
    for name, function in scripts.items():
        module = function.partition(":")[0]
        assert executable_form((name,))[2] in {module, FORMER.get(name)}


@pytest.mark.parametrize(
    ("name", "module", "with_fairseq"),
    [
        ("fairseq-train", "fairseq_cli.train", True),
        ("fairseq-generate", "fairseq_cli.generate", True),
        ("fairseq-eval-lm", "fairseq_cli.eval_lm", True),
        ("fairseq-validate", "fairseq_cli.validate", True),
        ("nas-attn", "nas_attn.__main__", True),
        ("nas-attn-replay", "nas_attn.simulation.command", False),
    ],
)
def test_commands_are_run_by_this_python(name: str, module: str, with_fairseq: bool) -> None:
    assert executable_form((name, "data")) == [sys.executable, "-m", module, "data"]
    assert needs_fairseq((name, "data")) == with_fairseq


@pytest.mark.parametrize("module", ["nas_attn._measure", FORMER["nas-attn-measure"]])
def test_measurements_are_run_by_either_module(
    module: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    installed = [EntryPoint("nas-attn-measure", f"{module}:main", "console_scripts")]
    monkeypatch.setattr(programs, "entry_points", lambda **which: installed)
    assert needs_fairseq(("nas-attn-measure",))
    subprocess.run(executable_form(("nas-attn-measure", "--help")), check=True)
    assert capfd.readouterr().out.startswith("usage: nas-attn-measure ")


def test_unknown_commands() -> None:
    with pytest.raises(NasAttnError, match="cannot run 'rm'; there are fairseq-train"):
        executable_form(("rm", "-rf"))
    with pytest.raises(NasAttnError, match="cannot run 'pip'"):
        executable_form(("pip", "list"))


def test_programs_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[EntryPoint] = []

    def entry_points(*, group: str, name: str) -> list[EntryPoint]:
        return [found for found in installed if (found.group, found.name) == (group, name)]

    monkeypatch.setattr(programs, "entry_points", entry_points)
    with pytest.raises(NasAttnError, match=r"nas-attn-replay is not installed for .*: install nas"):
        executable_form(("nas-attn-replay",))
    installed.append(EntryPoint("nas-attn-replay", "other.module:main", "console_scripts"))
    assert executable_form(("nas-attn-replay",))[2] == "other.module", "once it is installed"


def test_installed_programs_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def entry_points(**which: Any) -> list[EntryPoint]:
        looked.append(which)
        return [EntryPoint("nas-attn", "some.module:main", "console_scripts")]

    monkeypatch.setattr(programs, "entry_points", entry_points)
    for _ in range(3):
        assert executable_form(("nas-attn",))[2] == "some.module"
    assert len(looked) == 1
