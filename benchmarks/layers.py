"""How the code is arranged: lines a file, the longest ones, circles and arrows that point up.

python benchmarks/layers.py
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.helpers.layers import LAYERS, circles, module_files, part_of, upward_arrows
from tests.helpers.layers import plugin_files as files_of_plugin


def functions(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of every function, signature and docstring included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or 0) - node.lineno + 1, f"{path.relative_to(ROOT)}:{node.name}"


def main() -> None:
    lines = {
        path.relative_to(ROOT): len(path.read_text().splitlines())
        for path in [*module_files(), *files_of_plugin()]
    }
    layer = None
    for name in sorted({part_of(path) for path in module_files()}, key=lambda n: (LAYERS[n], n)):
        if LAYERS[name] != layer:
            layer = LAYERS[name]
            print(f"layer {layer}")
        own = {p: n for p, n in lines.items() if p.parts[0] == "nas_attn" and _part(p) == name}
        print(f"  {name:<16}{sum(own.values()):>6} lines in {len(own)} files")
        for path, count in sorted(own.items()):
            if len(own) > 1:
                print(f"      {count:>5}  {Path(*path.parts[2:])}")
    plugin = {p: n for p, n in lines.items() if p.parts[0] == "fairseq_plugin"}
    print(f"fairseq_plugin    {sum(plugin.values()):>6} lines in {len(plugin)} files")
    print(f"in all            {sum(lines.values()):>6} lines in {len(lines)} files")
    longest = max(lines, key=lambda path: lines[path])
    print(f"longest file      {lines[longest]} lines: {longest}")
    found = sorted(
        (f for path in [*module_files(), *files_of_plugin()] for f in functions(path)), reverse=True
    )
    commands = [f for f in found if "_commands.py:" in f[1]]
    print(f"longest function  {next(f for f in found if f not in commands)}")
    print(f"longest command   {commands[0]}, a table of options")
    print(f"import circles    {len(circles())}")
    print(f"upward arrows     {len(upward_arrows())}")


def _part(path: Path) -> str:
    return path.parts[1].removesuffix(".py")


if __name__ == "__main__":
    main()
