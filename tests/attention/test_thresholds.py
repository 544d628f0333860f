"""The table by which implementations are chosen, and files of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_attn.attention import use_thresholds
from nas_attn.attention.functional import AttentionCall, choose_implementation
from nas_attn.attention.thresholds import BUILT_IN, Thresholds, thresholds_for
from nas_attn.attention.thresholds_file import read_thresholds, write_thresholds
from nas_attn.errors import ConfigError
from tests.helpers.devices import needs_cuda
from tests.helpers.paths import ROOT

CPU = torch.device("cpu")
ROW = Thresholds(source="a test", device="cpu", dtype="bfloat16", unequal_widths="unpadded")


@pytest.fixture(autouse=True)
def _built_in_again() -> Iterator[None]:
    yield
    use_thresholds(None)


def test_the_first_row_that_fits() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert thresholds_for(CPU, dtype) is BUILT_IN[0]
    assert thresholds_for(torch.device("meta"), torch.float32) is BUILT_IN[-1]
    assert thresholds_for(torch.device("cuda"), torch.float32) is BUILT_IN[-1]


def test_rows_ask_for_device_type_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: {1: (9, 0)}.get(device.index, (8, 6))
    )
    hopper = next(row for row in BUILT_IN if row.capability == "9.0")
    assert thresholds_for(cuda, torch.bfloat16) is hopper
    assert thresholds_for(cuda, torch.float32) is BUILT_IN[-1]
    assert thresholds_for(torch.device("cuda", 0), torch.bfloat16) is BUILT_IN[-1]


def test_sources_are_there() -> None:
    for row in BUILT_IN:
        assert row.source
        named = row.source.partition(":")[0]
        assert not named.startswith("docs/") or Path(named).is_file()


@needs_cuda
def test_the_defaults_on_a_gpu() -> None:
    device = torch.device("cuda")
    for dtype in (torch.float32, torch.bfloat16):
        queries, narrow, wide = (torch.zeros(2, n, 64, 64).to(device, dtype) for n in (8, 1, 8))
        call = AttentionCall(scale=1.0)
        assert choose_implementation(queries, narrow, narrow, call) == "rows"
        assert choose_implementation(queries, narrow, wide[..., :32], call) == "fused"
        shifts = torch.zeros(8, 64).to(device, dtype)
        shifted = AttentionCall(scale=1.0, shifts=shifts)
        assert choose_implementation(narrow, narrow, narrow, shifted) == "rows"


def test_a_file_is_used_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    write_thresholds([ROW], path)
    assert read_thresholds(path) == (ROW,)
    use_thresholds(path)
    assert thresholds_for(CPU, torch.bfloat16) == ROW
    assert thresholds_for(CPU, torch.float32) is BUILT_IN[0]
    use_thresholds(None)
    assert thresholds_for(CPU, torch.bfloat16) is BUILT_IN[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "blockwise"),
        ({"explicit_max_scores": 10**6}, "explicit"),
        ({"unequal_widths": "unpadded"}, "unpadded"),
        ({"unequal_widths": "fused"}, "fused"),
        ({"unequal_widths": "flex"}, "fused"),  # it cannot: heads are too narrow
    ],
)
def test_unequal_widths_take_what_the_table_says(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    write_thresholds([replace(BUILT_IN[0], **changes)], tmp_path / "file")
    use_thresholds(tmp_path / "file")
    queries, keys, values = (torch.zeros(1, 4, 256, width) for width in (12, 12, 8))
    assert choose_implementation(queries, keys, values, AttentionCall(scale=1.0)) == expected


def test_shared_heads_take_what_the_table_says(tmp_path: Path) -> None:
    changed = {"one_head": "fused", "grouped_heads": "rows", "shared_scores_min_queries": None}
    write_thresholds([replace(BUILT_IN[0], **changed)], tmp_path / "file")
    queries, one, two = (torch.zeros(4, n, 512, 64) for n in (8, 1, 2))
    call, shifted = (AttentionCall(scale=1.0, shifts=s) for s in (None, torch.zeros(8, 64)))
    chosen = [(choose_implementation(queries, keys, keys, call)) for keys in (one, two)] + [
        choose_implementation(one, one, one, shifted)
    ]
    assert chosen == ["rows", "fused", "shared_scores"]
    use_thresholds(tmp_path / "file")
    chosen = [choose_implementation(queries, keys, keys, call) for keys in (one, two)]
    assert [*chosen, choose_implementation(one, one, one, shifted)] == ["fused", "rows", "fused"]


def wrong(**changes: Any) -> dict[str, Any]:
    return {"version": 1, "thresholds": [asdict(ROW), asdict(ROW) | changes]}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (wrong(device="tpu"), 'thresholds.1.device: must be of "cpu", "cuda"'),
        (wrong(device=None), "thresholds.1.device: must be of"),
        (wrong(device=["cpu"]), "thresholds.1.device: must be of"),
        (wrong(capability="nine"), "thresholds.1.capability: must be a compute capability"),
        (wrong(dtype="int8"), "thresholds.1.dtype: must be of"),
        (wrong(explicit_max_scores=-1), "thresholds.1.explicit_max_scores: must be a whole number"),
        (wrong(explicit_max_scores=True), "thresholds.1.explicit_max_scores: must be a whole"),
        (wrong(explicit_max_scores=1.5), "thresholds.1.explicit_max_scores: must be a whole"),
        (wrong(unequal_widths="explicit"), "thresholds.1.unequal_widths: must be of"),
        (wrong(shared_scores_min_queries="many"), "or null"),
        (wrong(source=""), "thresholds.1.source: must be a text of 1 to 500"),
        (wrong(eval="1"), "thresholds.1.eval: unknown key"),
        ({"version": 1, "thresholds": [{}]}, "thresholds.0.source: is missing"),
        ({"version": 1, "thresholds": [3]}, "thresholds.0: must be a section of keys"),
        ({"version": 1, "thresholds": []}, "thresholds: must be a list of 1 to 1000"),
        ({"version": True, "thresholds": [asdict(ROW)]}, "version: must be 1"),
        ({"thresholds": [asdict(ROW)]}, "version: is missing"),
        ([], "(file): must be a section of keys"),
    ],
)
def test_a_wrong_file_is_refused_whole(tree: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(ConfigError) as refused:
        use_thresholds(path)
    assert message in str(refused.value)
    assert thresholds_for(CPU, torch.bfloat16) is BUILT_IN[0]


@pytest.mark.parametrize("content", [b"version: 1", b"\xff\xfe", b"{}" + b" " * (1 << 20)])
def test_what_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not JSON of at most"):
        use_thresholds(path)
    with pytest.raises(ConfigError, match="nowhere"):
        use_thresholds(tmp_path / "nowhere")


def test_the_environment_names_a_file(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    write_thresholds([replace(ROW, dtype=None)], path)
    script = (
        "import torch; from nas_attn.attention.thresholds import thresholds_for; "
        "print(thresholds_for(torch.device('cpu'), torch.float32).source)"
    )
    environment = os.environ | {"NAS_ATTN_THRESHOLDS": str(path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "a test\n"


def test_processes_in_other_folders_find_the_file(tmp_path: Path) -> None:
    """Also where its name is relative, to the folder of the process that was started first."""
    write_thresholds([replace(ROW, dtype=None)], tmp_path / "thresholds.json")
    (tmp_path / "trial").mkdir()
    child = (
        "import torch; from nas_attn.attention.thresholds import thresholds_for; "
        "print(thresholds_for(torch.device('cpu'), torch.float32).source)"
    )
    script = (
        "import subprocess, sys; import nas_attn.attention; "
        f"subprocess.run([sys.executable, '-c', {child!r}], cwd='trial', check=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"NAS_ATTN_THRESHOLDS": "thresholds.json", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "a test\n", done.stderr


def test_a_command_refuses_a_wrong_file_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thresholds.json").write_text("[]")
    monkeypatch.setenv("NAS_ATTN_THRESHOLDS", str(tmp_path / "thresholds.json"))
    command = [sys.executable, "-m", "nas_attn.cli.main", "bench", "attention", "--seconds=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "must be a section of keys" in done.stderr
    assert "Traceback" not in done.stderr
