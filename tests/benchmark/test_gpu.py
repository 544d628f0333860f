"""benchmarks/gpu.py: what it judges, and all of it with tiny sizes on the CPU."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import commit_of, is_done
from benchmarks.gpu_page import Target, targets, write_page
from benchmarks.gpu_tests import key_of, read_results
from tests.helpers.paths import ROOT

PARTS = "abcdef"


def gpu(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the script on a CPU, whatever there is."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "NAS_ATTN_COMMIT": "c0ffee"}
    command = [sys.executable, "benchmarks/gpu.py", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, **options
    )


def timing(contender: str, phase: str, length: int, ms: float, ratio: float) -> dict[str, Any]:
    return {
        "phase": phase, "batch": 1, "length": length, "contender": contender, "median_ms": ms,
        "ratio": ratio, "spread": 0.05, "peak_mb": None,
    }  # fmt: skip


def result(part: str, data: Mapping[str, Any], **about: Any) -> dict[str, Any]:
    return {
        "part": part, "title": "a part", "date": "2026-11-26T10:00:00+00:00", "commit": "c0ffee",
        "dry": False, "state": "done", "reason": "", "seconds": 3.0, "data": data,
    } | about  # fmt: skip


def judged(results: Mapping[str, Any], beginning: str) -> Target:
    (found,) = [target for target in targets(results) if target.what.startswith(beginning)]
    return found


def test_targets_are_judged_by_the_worst_length() -> None:
    rows = [
        timing("multi_query", "forward_backward", 128, 1.0, 0.9),
        timing("multi_query", "forward_backward", 512, 1.0, 1.1),
        timing("grouped_query (num_groups 2)", "forward_backward", 128, 1.0, 1.0),
        timing("collaborative (shared_dim 128)", "forward_backward", 2048, 1.0, 1.1),
        timing("collaborative (shared_dim 128)", "forward_backward", 4096, 1.0, 2.0),
        timing("collaborative (shared_dim 64)", "forward_backward", 128, 1.0, 3.0),
        timing("multi_head", "decode", 8192, 2.0, 0.1),
        timing("multi_query", "decode", 8192, 1.0, 0.05),
        timing("grouped_query (num_groups 2)", "decode", 8192, 1.01, 0.05),
    ]
    found = {"c": result("c", {"schemes": rows, "embed_dim": 512})}
    missed = judged(found, "multi_query: forward")
    assert missed.word == "missed"
    assert missed.measured == "1.10 ±5% at 1x512, the worst; 1 of 2 lengths within"
    assert judged(found, "grouped_query: forward").word == "reached"
    assert judged(found, "collaborative").word == "reached"  # what is longer does not count
    assert judged(found, "multi_query: a decoding").word == "reached"
    assert judged(found, "grouped_query: a decoding").word == "missed"
    assert judged(found, "shared_key_value: forward").word == "not measured"
    assert judged(found, "multi_head").word == "not measured"


@pytest.mark.parametrize(("ours", "word"), [(100.0, "reached"), (99.0, "missed")])
def test_the_target_of_training_is_of_medians(ours: float, word: str) -> None:
    speeds = [
        {"contender": "fairseq", "words_a_second": [100.0, 50.0, 100.0]},
        {"contender": "multi_head", "words_a_second": [ours]},
    ]
    assert judged({"d": result("d", {"speeds": speeds})}, "multi_head").word == word


def test_a_page_of_parts_that_failed(tmp_path: Path) -> None:
    test = {"test": "tests.test_x::test_y", "state": "failed", "seconds": 1.0, "lines": "E  a | b"}
    results = {
        "b": result("b", {"counts": {"failed": 1}, "tests": [test]}),
        "e": result("e", {}, state="failed", reason="Traceback\nValueError: <b> | `x`"),
    }
    write_page(results, targets(results), tmp_path / "gpu.md")
    page = (tmp_path / "gpu.md").read_text()
    assert "`tests.test_x::test_y` failed:\n\n    E  a | b" in page
    assert "    ValueError: <b> | `x`" in page
    assert r"| ValueError: &lt;b&gt; \| \`x\` |" in page


def test_junit_names_are_those_that_pytest_collects(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "class TestIn:\n"
        "    @pytest.mark.parametrize('x', ['a::b', 'c'])\n"
        "    def test_it(self, x): assert x == 'c'\n"
        "def test_out(): pytest.skip('why')\n"
    )
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir=.", "test_some.py"]
    subprocess.run([*command, "--junitxml=all.xml"], cwd=tmp_path, capture_output=True)
    listed = subprocess.run(
        [*command, "--collect-only", "-q"], cwd=tmp_path, capture_output=True, text=True
    )
    names = [key_of(line) for line in listed.stdout.splitlines() if "::" in line]
    ended = {outcome.test: outcome for outcome in read_results(tmp_path / "all.xml")}
    assert names == list(ended)
    assert [ended[name].state for name in names] == ["failed", "passed", "skipped"]
    assert "assert 'a::b' == 'c'" in ended[names[0]].lines
    assert ended[names[2]].lines == "why"


@pytest.mark.slow
def test_a_failed_part_is_written_down_and_tried_again(tmp_path: Path) -> None:
    assert "there is no part x" in gpu("--parts=a,x").stderr
    for _ in range(2):
        done = gpu("--parts=a", f"--out={tmp_path}")
        assert done.returncode == 1
        assert "PyTorch finds no GPU here" in done.stdout
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["state"], found["commit"], found["data"]["gpu"]) == ("failed", "c0ffee", None)
    assert "PyTorch finds no GPU here" in (tmp_path / "gpu.md").read_text()


def test_a_part_is_done_for_the_code_that_it_ran(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=x", "-c", "user.email=x@x")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)

    assert commit_of(tmp_path) == "unknown"
    git("init", "-q")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    found = [commit_of(tmp_path)]
    for name, text in (("code.py", "2"), ("code.py", "3"), ("new.py", "4"), ("new.py", "5")):
        (tmp_path / name).write_text(text)
        found.append(commit_of(tmp_path))
        assert commit_of(tmp_path) == found[-1]
    assert len(set(found)) == 5
    for commit in (*found, "unknown"):
        options = argparse.Namespace(out=tmp_path, commit=commit, dry=False)
        (tmp_path / "a.json").write_text(json.dumps(result("a", {}, commit=commit)))
        assert is_done(options, "a") == (commit != "unknown")


@pytest.mark.long
@pytest.mark.slow
def test_all_parts_with_tiny_sizes(tmp_path: Path) -> None:
    done = gpu("--dry", "--minutes=30", f"--out={tmp_path}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    parts = {part: result["data"] for part, result in found["parts"].items()}
    assert "".join(parts) == PARTS
    assert parts["b"]["counts"]["passed"] >= 1
    assert {row["phase"] for row in parts["c"]["schemes"]} == {
        "forward", "forward_backward", "decode", "reorder",
    }  # fmt: skip
    assert {speed["contender"] for speed in parts["d"]["speeds"]} == {
        "fairseq", "multi_head", "multi_query",
    }  # fmt: skip
    assert [row["trial"] for row in parts["e"]["front"]]
    assert parts["e"]["cold_starts"] == []
    assert parts["f"]["changes"] > 0
    assert {target["word"] for target in found["targets"]} <= {"reached", "missed"}
    page = (tmp_path / "gpu.md").read_text()
    assert page.count("\n## ") == 6
    again = gpu("--dry", f"--out={tmp_path}")
    assert again.stdout.count("done before") == len(PARTS)
    assert (tmp_path / "gpu.md").read_text() == page


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--dry", "--minutes=30", f"--out={tmp_path}"]
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where tests run by nohup
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=heeded
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("b  "):
                break
        time.sleep(1.0)
        running.send_signal(signal.SIGINT)
        output = running.stdout.read()
    assert running.returncode == 130
    assert "the same command goes on" in output
    states = {part: json.loads((tmp_path / f"{part}.json").read_text())["state"] for part in "ab"}
    assert states == {"a": "done", "b": "interrupted"}
    assert not (tmp_path / "c.json").exists()
    assert "interrupted" in (tmp_path / "gpu.md").read_text()
