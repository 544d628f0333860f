"""The layers of nas_attn, and what its files say of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import nas_attn
from tests.helpers.paths import ROOT

PACKAGE = Path(nas_attn.__file__).parent

LAYERS = {
    "__init__": 0, "_deprecated": 0, "_imports": 0, "bleu": 0, "config_model": 0,
    "curves": 0, "errors": 0, "files": 0, "knapsack": 0, "light_fairseq": 0, "literals": 0,
    "machine": 0, "masking": 0, "measures": 0, "pareto": 0, "plan": 0, "private": 0, "pruned": 0,
    "rank_agreement": 0, "shell": 0, "validation_log": 0, "yaml_file": 0,
    "attention": 1, "known_cost": 1, "space": 1,
    "conversion": 2,
    "trials": 3,
    "fairseq_tools": 4, "simulation": 4,
    "engine": 5,
    "study": 6,
    "analysis": 7, "benchmark": 7,
    "report": 8,
    "workflows": 9,
    "api": 10,
    "cli": 11, "fronts": 11,
    "__main__": 12, "_measure": 12,
}  # fmt: skip
"""Number of the layer of each module or package; those of one number are strangers."""

STRANGERS = {("engine", "fairseq_tools")}
"""The first does not import the second, although it is below."""

OWNERS = {
    "fairseq": ("fairseq_tools", "benchmark"),
    "fairseq_plugin": ("fairseq_tools",),
    "ctranslate2": ("fairseq_tools",),
    "ray": ("engine",),
    "typer": ("cli",),
    "rich": ("cli",),
}
"""The only parts of nas_attn that may import a package."""

MOST_LINES = 500
MOST_LINES_OF_A_FUNCTION = 60
MOST_LINES_OF_A_COMMAND = 30
TABLE_OF_OPTIONS, MOST_LINES_BELOW_OPTIONS = 8, 40
"""A function with so many parameters is a table of options, whose body alone is measured."""


def module_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def inner_files() -> list[Path]:
    """All but the package's face, which names what it shows by a table and imports nothing."""
    return [path for path in module_files() if path != PACKAGE / "__init__.py"]


def plugin_files() -> list[Path]:
    return sorted((ROOT / "fairseq_plugin").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Modules, and names in our own, that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path.parent.name == "fairseq_plugin", f"{path}: relative"
            found.add(node.module or "")
            if (node.module or "").startswith("nas_attn"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(name: str) -> str:
    """`nas_attn.engine.loop` -> engine."""
    here = [*name.split("."), "__init__"][1]
    return here if here in LAYERS else "__init__"


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
        ".__init__"
    )


def upward_arrows() -> set[tuple[str, str]]:
    arrows = set()
    for path in inner_files():
        here = part_of(path)
        for name in imports(path):
            there = part(name)
            if not name.startswith("nas_attn") or there == here:
                continue
            below = LAYERS[there] < LAYERS[here] and (here, there) not in STRANGERS
            if not below and not LAYERS[there] == LAYERS[here] == 0:
                arrows.add((here, there))
    return arrows


def circles() -> list[list[str]]:
    """Ways from a module back to itself, as far as the first of them for each module."""
    files = {module_name(path): path for path in inner_files()}
    arrows = {name: {n for n in imports(path) if n in files} for name, path in files.items()}
    done: set[str] = set()
    found = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            found.append([*above[above.index(name) :], name])
        elif name not in done:
            for below in sorted(arrows[name] - {name}):
                visit(below, (*above, name))
            done.add(name)

    for name in files:
        visit(name, ())
    return found


def long_functions() -> Iterator[str]:
    """Functions that are longer than they may be."""
    for path in [*module_files(), *plugin_files()]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            most = node.lineno + MOST_LINES_OF_A_FUNCTION
            if len(node.args.args) + len(node.args.kwonlyargs) >= TABLE_OF_OPTIONS:
                most = max(most, (node.body[0].end_lineno or 0) + MOST_LINES_BELOW_OPTIONS)
            if (node.end_lineno or 0) >= most:
                yield f"{path.stem}.{node.name}"
