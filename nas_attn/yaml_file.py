"""YAML of studies and search spaces: plain data, refused in words where it is not.

Numbers are those of YAML 1.2 (1e-3 is one, 1:30 and dates are words). Merge keys and aliases work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unicodedata import category

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from nas_attn.errors import ConfigError, ConfigIssue

LARGEST_FILE = 1 << 20
DEEPEST = 50
"""Levels of sections and lists in each other."""
MOST_VALUES = 100_000
"""Values of a file, aliases counted wherever they stand."""
MOST_DIGITS = 18
"""Of a whole number, which machines keep in 64 bits."""

MERGE = "tag:yaml.org,2002:merge"
INT = "tag:yaml.org,2002:int"
FLOAT = "tag:yaml.org,2002:float"
DROPPED = (INT, FLOAT, "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
"""Of YAML's tags, those of plain data."""
DECIMAL = re.compile(r"[-+]?[0-9][0-9_]*")
POWER = re.compile(r"[-+]?[0-9][0-9_]*[eE]\+?[0-9]{1,2}")
"""A whole number with a power of ten, which is a whole number again."""


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which the first would be lost, and what is too deep or long."""

    # Copies, since YAML's own are shared by all loaders.
    yaml_implicit_resolvers = {  # noqa: RUF012  the base class has it so
        first: [(tag, pattern) for tag, pattern in found if tag not in DROPPED]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    yaml_constructors = {  # noqa: RUF012
        tag: made
        for tag, made in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in KINDS
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._checked: set[int] = set()

    def compose_node(self, parent: Any, index: Any) -> Node | None:
        self._depth += 1
        if self._depth > DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            message = f"more than {DEEPEST} levels in each other"
            raise yaml.constructor.ConstructorError(None, None, message, mark)
        node: Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def flatten_mapping(self, node: MappingNode) -> None:
        # Before the keys of others are merged in, which own ones may replace.
        if id(node) not in self._checked:
            self._checked.add(id(node))
            self._check_keys(node)
        super().flatten_mapping(node)

    def _check_keys(self, node: MappingNode) -> None:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue
            if not isinstance(key_node, ScalarNode):
                raise _refused("a key must be a word", key_node)
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                message = f"a key must be a word; write it in quotes: {key_node.value[:80]!r}"
                raise _refused(message, key_node)
            if key in seen:
                raise _refused(f"the key {key!r} stands twice", key_node)
            seen.add(key)

    def construct_whole(self, node: ScalarNode) -> int:
        text = node.value.replace("_", "").lower()
        if len(text) > MOST_DIGITS + 3:
            raise _refused(f"a number of more than {MOST_DIGITS} digits", node)
        mantissa, _, power = text.partition("e")
        if POWER.fullmatch(node.value):
            value = int(mantissa) * int(10 ** int(power))
        else:
            value = int(text, 0) if text.lstrip("+-")[:2] in ("0x", "0o", "0b") else int(text)
        if abs(value) >= 10**MOST_DIGITS:
            raise _refused(f"a number of more than {MOST_DIGITS} digits", node)
        return value


def _refused(message: str, node: Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


_Loader.add_implicit_resolver(
    INT,
    re.compile(rf"(?:{DECIMAL.pattern}|[-+]?0[xob][0-9a-fA-F_]+|{POWER.pattern})\Z"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    FLOAT,
    re.compile(
        r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z"
    ),
    list("-+.0123456789"),
)
_Loader.add_constructor(INT, _Loader.construct_whole)


def parse_yaml(text: str) -> Any:
    """Read one YAML document into plain data that shares nothing.

    Raises:
        ValueError: it is no YAML, or not of the kind that is taken; the message says where.
    """
    if len(text) > LARGEST_FILE:
        raise ValueError(f"it has more than {LARGEST_FILE:,} characters")
    try:
        tree = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"is not YAML: {error}") from None
    except LookupError as error:  # a tag such as !!bool before what is none
        raise ValueError(f"is not YAML: no value of its kind: {error}") from None
    return plain_copy(tree)


def plain_copy(tree: Any) -> Any:
    """Plain data as a file may hold them, without aliases: to change one place changes no other.

    Raises:
        ValueError: there is something else in it, or too much.
    """
    return _copy(tree, iter(range(MOST_VALUES)), 0)


def _copy(value: Any, values: Iterator[int], depth: int) -> Any:
    if next(values, None) is None or depth > DEEPEST:
        raise ValueError(f"more than {MOST_VALUES:,} values, or one that holds itself")
    if isinstance(value, dict):
        return {_key(k): _copy(v, values, depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [_copy(item, values, depth + 1) for item in value]
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ValueError(f"{type(value).__name__} is no word, number, list or section")


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"a key must be a word, but is {str(key)[:80]!r}")
    return _text(key)


def _text(text: str) -> str:
    """Text that files, terminals and command lines take."""
    odd = next((c for c in text if category(c) in ("Cc", "Cs") and c not in "\n\t"), None)
    if odd is not None:
        raise ValueError(f"a word holds the character {odd!a}: {text[:40]!a}")
    return text


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of sections.

    Raises:
        ConfigError: it cannot be read, or is not YAML of the kind that is taken.
    """
    try:
        with path.open(encoding="utf-8") as file:
            tree = parse_yaml(file.read(LARGEST_FILE + 1))
    except UnicodeDecodeError as error:
        raise ConfigError(
            str(path), [ConfigIssue("(file)", f"is not UTF-8 text: {error}")]
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), [ConfigIssue("(file)", str(error))]) from None
    if not isinstance(tree, dict):
        raise ConfigError(str(path), [ConfigIssue("(file)", "must be a mapping of keys")])
    return tree


def override(tree: dict[str, Any], text: str) -> None:
    """Replace one value of a file's data.

    Args:
        tree: Sections and values, changed in place.
        text: KEY.PATH=VALUE; the value is YAML.

    Raises:
        ConfigError: the text is not of this form.
    """
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError("--set", [ConfigIssue(text, "must be KEY.PATH=VALUE")])
    *parents, last = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:  # also where the file says null, as it may
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError("--set", [ConfigIssue(key, f"{parent} is no section")])
    try:
        tree[last] = parse_yaml(value)
    except ValueError as error:
        raise ConfigError("--set", [ConfigIssue(key, f"{value[:80]!r} {error}")]) from None
