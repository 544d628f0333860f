"""One direction of flow: a layer imports only what lies below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import nas_attn
from tests.conftest import ROOT

PACKAGE = Path(nas_attn.__file__).parent

LAYERS = {
    "__init__": 0, "amounts": 0, "errors": 0, "literals": 0, "masking": 0, "plan": 0, "private": 0,
    "section": 0,
    "yaml_file": 1,
    "attention": 1, "space": 1, "pareto": 1, "knapsack": 1, "ranks": 1, "text_plot": 1,
    "conversion": 2,
    "training": 3,
    "search": 4, "benchmark": 4,
    "report": 5,
    "study": 6,
    "display": 7, "predictions": 7, "export": 7,
    "cli": 8,
}  # fmt: skip
"""Number of the layer of each module or package; those of one number are strangers."""

OWNERS = {"fairseq": "training", "fairseq_plugin": "training", "ray": "search"}
"""The only part of nas_attn that may import a package."""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            if node.module == "nas_attn":
                found |= {f"nas_attn.{alias.name}" for alias in node.names}
    return found


def part(name: str) -> str:
    """`nas_attn.search.driver` -> search."""
    return [*name.split("."), "__init__"][1]


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_part_has_a_layer() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in sources()}
    assert parts == set(LAYERS)


def test_imports_point_downwards() -> None:
    for path in sources():
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imports(path):
            if not name.startswith("nas_attn"):
                continue
            there = part(name)
            inside = there == here
            below = LAYERS.get(there, 0) < LAYERS[here]
            both_ground = LAYERS.get(there, 0) == LAYERS[here] == 0
            assert inside or below or both_ground, f"{path.name} imports {name}"


def test_foreign_packages_have_one_owner() -> None:
    for path in sources():
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imports(path):
            owner = OWNERS.get(name.split(".")[0])
            assert owner in (None, here), f"{path.name} imports {name}"


def test_attention_needs_only_torch() -> None:
    outside = {
        name.split(".")[0]
        for path in (PACKAGE / "attention").rglob("*.py")
        for name in imports(path)
    }
    assert outside - set(sys.stdlib_module_names) == {"torch", "nas_attn"}


def test_the_space_needs_no_torch() -> None:
    outside = {n.split(".")[0] for p in (PACKAGE / "space").rglob("*.py") for n in imports(p)}
    assert "torch" not in outside


def test_the_plugin_needs_little_of_us() -> None:
    allowed = ("nas_attn.attention", "nas_attn.plan", "nas_attn.errors")
    allowed += ("nas_attn.literals", "nas_attn.training.reporting")
    for path in (ROOT / "fairseq_plugin").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nas_attn"):
                assert (node.module or "").startswith(allowed), f"{path.name}: {node.module}"


def test_starting_is_light() -> None:
    """`import nas_attn` and `nas-attn --help` load none of the heavy packages."""
    script = (
        "import sys, nas_attn, nas_attn.cli; "
        "heavy = {'torch', 'fairseq', 'optuna', 'ray', 'pandas', 'plotly', 'matplotlib'}; "
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_nothing_prints_or_evaluates() -> None:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "print",
                "eval",
                "exec",
            ):
                raise AssertionError(f"{path.name}:{node.lineno} calls {node.func.id}")
