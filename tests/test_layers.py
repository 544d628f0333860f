"""One direction of flow: a layer imports only what lies below it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nas_attn
from tests.helpers.paths import LONGEST, ROOT

PACKAGE = Path(nas_attn.__file__).parent

LAYERS = {
    "__init__": 0, "_deprecated": 0, "_imports": 0, "bleu": 0, "config_model": 0,
    "curves": 0, "errors": 0, "files": 0, "knapsack": 0, "light_fairseq": 0, "literals": 0,
    "machine": 0, "masking": 0, "pareto": 0, "plan": 0, "private": 0, "rank_agreement": 0,
    "shell": 0, "validation_log": 0, "yaml_file": 0,
    "attention": 1, "space": 1,
    "conversion": 2,
    "trials": 3,
    "fairseq_tools": 4, "simulation": 4,
    "engine": 5,
    "study": 6,
    "analysis": 7, "benchmark": 7,
    "report": 8,
    "workflows": 9,
    "api": 10,
    "cli": 11,
    "__main__": 12,
}  # fmt: skip
"""Number of the layer of each module or package; those of one number are strangers."""

STRANGERS = {("engine", "fairseq_tools")}
"""The first does not import the second, although it is below."""

OWNERS = {
    "fairseq": ("fairseq_tools", "benchmark"),
    "fairseq_plugin": ("fairseq_tools",),
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
    """`nas_attn.engine.loop` -> search."""
    here = [*name.split("."), "__init__"][1]
    return here if here in LAYERS else "__init__"


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
        ".__init__"
    )


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in module_files()} == set(LAYERS)


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


def test_imports_point_downwards() -> None:
    assert upward_arrows() == set()


def test_no_module_imports_itself_by_way_of_others() -> None:
    files = {module_name(path): path for path in inner_files()}
    arrows = {name: {n for n in imports(path) if n in files} for name, path in files.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for below in sorted(arrows[name] - {name}):
                visit(below, (*above, name))
            done.add(name)

    for name in files:
        visit(name, ())


def test_foreign_packages_have_their_owners() -> None:
    for path in module_files():
        here = part_of(path)
        for name in imports(path):
            owners = OWNERS.get(name.split(".")[0])
            assert owners is None or here in owners, f"{path.name} imports {name}"


def test_no_arrow_hides_in_a_string() -> None:
    """No text names a module that may not be imported; an import by name is an import."""
    for path in inner_files():
        here = part_of(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = re.match(r"nas_attn(\.\w+)+", node.value)
                there = part(named[0]) if named else here
                assert there == here or LAYERS[there] < LAYERS[here], f"{path}:{node.lineno}"


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
    allowed = {"_imports", "attention", "plan", "errors", "literals", "validation_log"}
    for path in plugin_files():
        of_ours = {n for n in imports(path) if n.startswith("nas_attn.")}
        assert {part(name) for name in of_ours} <= allowed, path.name


def test_starting_is_light() -> None:
    """`import nas_attn` and `nas-attn --help` load none of the heavy packages."""
    script = (
        "import sys, nas_attn, nas_attn.cli.main; "
        "heavy = {'torch', 'fairseq', 'optuna', 'ray', 'pandas', 'plotly', 'matplotlib'}; "
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_nothing_prints_or_evaluates() -> None:
    for path in module_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "print",
                "eval",
                "exec",
            ):
                raise AssertionError(f"{path.name}:{node.lineno} calls {node.func.id}")


def test_no_test_imports_another() -> None:
    """What several test files need lies in tests/helpers."""
    allowed = ("tests.helpers", "tests.report.test_report")
    for path in sorted((ROOT / "tests").rglob("*.py")):
        of_tests = {name for name in imports(path) if name.split(".")[0] == "tests"}
        assert all(name.startswith(allowed) for name in of_tests), path.name


def test_the_longest_test_files_are_where_they_are_said_to_be() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []


def test_files_are_short() -> None:
    lines = {path.name: len(path.read_text().splitlines()) for path in module_files()}
    assert {name for name, count in lines.items() if count > MOST_LINES} == set()


def long_functions() -> Iterator[str]:
    for path in [*module_files(), *plugin_files()]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            most = node.lineno + MOST_LINES_OF_A_FUNCTION
            if len(node.args.args) + len(node.args.kwonlyargs) >= TABLE_OF_OPTIONS:
                most = max(most, (node.body[0].end_lineno or 0) + MOST_LINES_BELOW_OPTIONS)
            if (node.end_lineno or 0) >= most:
                yield f"{path.stem}.{node.name}"


def test_functions_are_short() -> None:
    assert list(long_functions()) == []


def test_commands_are_thin() -> None:
    """What stands below a command's options and help is a call, and what is printed of it."""
    for path in (PACKAGE / "cli").glob("*_commands.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - (node.body[0].end_lineno or 0)
                assert lines <= MOST_LINES_OF_A_COMMAND, f"{path.name}: {node.name} has {lines}"
