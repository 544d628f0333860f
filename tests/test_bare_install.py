"""The base install: what works with torch, numpy, pydantic and pyyaml alone, and what others say.

Packages of the extras are hidden from a process of its own, as if they were not installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import nas_attn
from nas_attn._imports import EXTRAS, require_extra
from nas_attn.errors import MissingExtraError, NasAttnError
from tests.helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

MODULES = {"fairseq-fixed": "fairseq", "grpcio": "grpc"}
"""Modules of packages that are called otherwise."""

ALSO_HIDDEN = ("omegaconf", "hydra", "transformers", "sqlalchemy", "alembic", "tensorly")
"""What comes with packages of the extras, or is there for tests."""

HIDE = f"""
import sys
HIDDEN = {{*{[*(name for extra in EXTRAS.values() for name in extra), *ALSO_HIDDEN]!r}}}
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in HIDDEN
        return None if hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""

USE = """
import torch
from torch import nn
import nas_attn
from nas_attn.attention import SCHEMES, build_attention
from nas_attn.attention.counting import count_model, count_plan
from nas_attn.conversion import convert_model
from nas_attn.plan import SITES, AttentionPlan, SiteShape
from nas_attn.space import SearchSpace, SpaceConfig
from nas_attn.yaml_file import read_yaml

torch.manual_seed(0)
x = torch.randn(2, 5, 16)
for scheme in SCHEMES:
    output, _ = build_attention(scheme, 16, 4)(x, x, x)
    assert output.shape == x.shape, scheme

shapes = {"encoder_self": SiteShape(num_layers=2, embed_dim=16, num_heads=4)}
space = SearchSpace(SpaceConfig.model_validate(read_yaml(SPACE)), shapes)
plan = space.plan([unit.alternatives[-1] for unit in space.units])
print(plan, count_plan(plan, shapes))

layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
model = nn.TransformerEncoder(layer, 2).eval()
before, size = model(x), count_model(model).total
plan = AttentionPlan.parse('{"encoder_self": ["multi_head", "grouped_query"]}')
converted = convert_model(model, plan, lambda model: model(x))
assert [str(module.choice) for module in converted] == ["multi_head", "grouped_query"]
assert count_model(model).total < size
assert (model(x) - before).abs().max() < 1.0
print("all of it works")
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDE + script]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def modules_of(extra: str) -> set[str]:
    """Modules of the packages that an extra lists itself."""
    packages = [re.split(r"[\[<>=]", line)[0] for line in PROJECT["optional-dependencies"][extra]]
    return {MODULES.get(package, package) for package in packages if package != "nas-attn"}


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_table_is_that_of_the_project(extra: str) -> None:
    assert modules_of(extra) == set(EXTRAS[extra])


def test_the_base_install_asks_for_four_packages() -> None:
    names = {re.split(r"[<>=]", line)[0] for line in PROJECT["dependencies"]}
    assert names == {"numpy", "pydantic", "pyyaml", "torch"}


def test_attention_spaces_and_conversion_work_without_extras(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("schemes: {multi_head: {}, collaborative: {shared_dim: [4, 8]}}\n")
    done = run(f"from pathlib import Path\nSPACE = Path({str(space)!r})\n{USE}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all of it works\n")


@pytest.mark.parametrize(
    "package",
    ["analysis", "benchmark", "cli", "fairseq_tools", "report", "engine", "study", "workflows"],
)
def test_what_needs_an_extra_names_it(package: str) -> None:
    done = run(f"import nas_attn.{package}")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("nas_attn.errors.MissingExtraError: fairseq, jinja2, "), done.stderr
    assert last.endswith('are not installed: pip install "nas-attn[search]"')


@pytest.mark.parametrize("command", ["nas-attn", "nas-attn-measure"])
def test_commands_name_the_extra_in_one_line(command: str) -> None:
    module, _, function = PROJECT["scripts"][command].partition(":")
    done = run(f"from {module} import {function}\n{function}()")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{command}: fairseq, jinja2, ")
    assert line.endswith('are not installed: pip install "nas-attn[search]"')


def test_replayed_trainings_need_no_extra() -> None:
    module, _, function = PROJECT["scripts"]["nas-attn-replay"].partition(":")
    done = run(f"from {module} import {function}\nsys.argv[1:] = ['--help']\n{function}()")
    assert done.returncode == 0, done.stderr


def test_a_missing_module_is_an_import_error_of_ours() -> None:
    require_extra("search")
    require_extra("search", "fairseq")
    with pytest.raises(MissingExtraError, match=r"no_such is not installed: pip install") as error:
        require_extra("search", "no_such")
    assert isinstance(error.value, ImportError)
    assert isinstance(error.value, NasAttnError)
    assert error.value.name == "no_such"


def test_metadata_are_those_of_the_project() -> None:
    """What an index shows: supported versions, types, one version in the citation, all files."""
    classifiers = set(PROJECT["classifiers"])
    lowest, end = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    versions = {f"Programming Language :: Python :: 3.{n}" for n in range(int(lowest), int(end))}
    assert versions == {c for c in classifiers if re.search(r"Python :: 3\.", c)}
    assert "Typing :: Typed" in classifiers
    assert (ROOT / "nas_attn/py.typed").exists()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (nas_attn.__version__, PROJECT["license"])
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
        "targets"
    ]
    for name in hatch["sdist"]["include"]:
        assert (ROOT / name).exists(), name
    assert {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md"} <= {
        *hatch["sdist"]["include"]
    }
