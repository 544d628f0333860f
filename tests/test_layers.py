"""One direction of flow: a layer imports only what lies below it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

from tests.helpers.layers import (
    LAYERS,
    MOST_LINES,
    MOST_LINES_OF_A_COMMAND,
    OWNERS,
    PACKAGE,
    circles,
    imports,
    inner_files,
    long_functions,
    module_files,
    part,
    part_of,
    plugin_files,
    upward_arrows,
)
from tests.helpers.paths import LONGEST, ROOT


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in module_files()} == set(LAYERS)


def test_imports_point_downwards() -> None:
    assert upward_arrows() == set()


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles() == []


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


def test_attention_loads_no_compiler() -> None:
    """It takes 3 s, in every process that counts, trains or evaluates."""
    script = (
        "import sys, nas_attn.attention, nas_attn.conversion; "
        "print({'torch._dynamo', 'torch.nn.attention.flex_attention'} & set(sys.modules))"
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
    for path in sorted((ROOT / "tests").rglob("*.py")):
        of_tests = {name for name in imports(path) if name.split(".")[0] == "tests"}
        assert all(name.startswith("tests.helpers") for name in of_tests), path.name


def test_the_longest_test_files_are_where_they_are_said_to_be() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []


def test_files_are_short() -> None:
    files = [*module_files(), *plugin_files(), *(ROOT / "tests").rglob("*.py")]
    lines = {path.name: len(path.read_text().splitlines()) for path in files}
    assert {name for name, count in lines.items() if count > MOST_LINES} == set()


def test_functions_are_short() -> None:
    assert list(long_functions()) == []


def test_commands_are_thin() -> None:
    """What stands below a command's options and help is a call, and what is printed of it."""
    for path in (PACKAGE / "cli").glob("*_commands.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - (node.body[0].end_lineno or 0)
                assert lines <= MOST_LINES_OF_A_COMMAND, f"{path.name}: {node.name} has {lines}"
