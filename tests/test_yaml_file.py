"""YAML as it is written in studies: numbers are numbers, merge keys merge, the rest is refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from nas_attn.errors import ConfigError
from nas_attn.yaml_file import override, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("2e7", 20_000_000), ("1E+5", 100_000), ("2.5e3", 2500.0), (".5", 0.5),
        ("5.", 5.0), ("-3", -3), ("1_000", 1000), ("0x1f", 31), ("200k", "200k"), ("1e", "1e"),
        ("1:30", "1:30"), ("2024-13-45", "2024-13-45"), ("2024-01-01", "2024-01-01"), ("~", None),
        ("yes", True), ("=", "="), ("日本", "日本"), ("'1e-3'", "1e-3"),
    ],
)  # fmt: skip
def test_scalars(text: str, value: Any) -> None:
    found = parse_yaml(f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))


def test_merge_keys() -> None:
    text = "x: &x {p: 1, q: 2}\ny: &y {<<: *x, q: 3}\nz: {<<: [*y, *x], r: {s: 4}}\nw: {<<: *y}"
    tree = parse_yaml(text)
    assert tree == {
        "x": {"p": 1, "q": 2}, "y": {"p": 1, "q": 3}, "z": {"p": 1, "q": 3, "r": {"s": 4}},
        "w": {"p": 1, "q": 3},
    }  # fmt: skip


def test_a_change_of_one_place_is_none_of_another() -> None:
    tree = parse_yaml("a: &a {b: {c: 1}}\nd: {<<: *a}\ne: *a")
    override(tree, "d.b.c=2")
    assert (tree["a"], tree["d"], tree["e"]) == ({"b": {"c": 1}}, {"b": {"c": 2}}, {"b": {"c": 1}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "the key 'a' stands twice"),
        ("a: {b: 1, 'b': 2}", "the key 'b' stands twice"),
        ("x: &x {p: 1}\ny: {<<: *x, p: 2, p: 3}", "the key 'p' stands twice"),
        ("1: 2", "a key must be a word"),
        ("? [a]\n: 2", "a key must be a word"),
        ("a: {<<: 3}", "for merging"),
        ("a: " + "9" * 5000, "more than 18 digits"),
        ("a: 1e99", "more than 18 digits"),
        ("a: " + "[" * 3000 + "]" * 3000, "more than 50 levels"),
        ("a: " + "{b: " * 60 + "1" + "}" * 60, "more than 50 levels"),
        ("a: &a [*a]", "one that holds itself"),
        (
            "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "\n".join(f"{n}: &{n} [{', '.join(['*' + chr(ord(n) - 1)] * 10)}]" for n in "bcdef"),
            "more than 100,000 values",
        ),
        ("a: !!timestamp x", "is not YAML"),
        ("a: !!bool x", "is not YAML"),
        ("a: !!int x", "is not YAML"),
        ("a: !!binary aGk=", "is not YAML"),
        ("a: !!python/object/apply:os.system [x]", "is not YAML"),
        ('a: "\\x1b[2J"', "holds the character"),
        ('a: "\\ud800"', "holds the character"),
        ('"a\\0": 1', "holds the character"),
        ("{", "is not YAML"),
        ("[1", "is not YAML"),
        ("a" * (1 << 20) + "b", "characters"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)


def test_many_keys_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    path.write_text("".join(f"k{number}: 1\n" for number in range(20_000)))
    start = time.process_time()
    assert len(read_yaml(path)) == 20_000
    assert time.process_time() - start < 12


@pytest.mark.parametrize("text", ["description={", "x=[1", "x=a: b: c", "x=&", "x=\x00", "x=1e99"])
def test_a_wrong_override_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--set: 1 error\n  \w+: "):
        override({}, text)


@pytest.mark.parametrize("text", ["x", "=1", ".=1", "a..b=1", "a.=1"])
def test_an_override_names_a_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"KEY\.PATH=VALUE"):
        override({}, text)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_yaml(path)
