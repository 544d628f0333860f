"""Run tests with pytest, in several processes, and say how each ended, also if time runs out."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
CHUNK = 40
"""Tests of a process at most; those of a process are of one file."""
CLOSE_SECONDS = 6.0
"""What pytest takes to write its results after Ctrl-C."""

# What newer libraries warn of is no fault of a GPU; plugins that happen to be there stay out.
PYTEST = [
    *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "pytest_timeout"),
    *("-W", "default", "--tb=short"),
]


@dataclass(frozen=True)
class Outcome:
    """How a test ended: passed, failed, skipped or not run, with the last lines of its report."""

    test: str
    state: str
    seconds: float = 0.0
    lines: str = ""


def run_tests(
    selection: Sequence[str],
    folder: Path,
    seconds: float,
    keep: Callable[[Mapping[str, Any]], None],
    say: Callable[[str], None],
    *,
    places: Sequence[str] = (),
) -> None:
    """Run the tests that pytest selects, in processes side by side, and keep what they came to.

    Args:
        selection: Options of pytest that choose tests, such as `-m cuda`.
        folder: Folder of logs and results.
        seconds: Time for all; what has not ended then is written down as not run.
        keep: Takes the results, again and again.
        say: Told how far it is.
        places: Files to look for them in, if not all.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    deadline = time.monotonic() + seconds - CLOSE_SECONDS
    names = collect([*selection, *places])
    waiting = chunks(names)
    at_a_time = max(2, min(8, (os.cpu_count() or 1) // 2))
    say(f"{len(names)} tests in {len(waiting)} processes, {at_a_time} at a time")
    running: dict[str, subprocess.Popen[bytes]] = {}
    while (waiting or running) and time.monotonic() < deadline:
        while waiting and len(running) < at_a_time:
            stem = next(iter(waiting))
            running[stem] = start(stem, waiting.pop(stem), folder)
        for stem in [stem for stem, process in running.items() if process.poll() is not None]:
            del running[stem]
            keep(summary(names, folder))
            say(f"{stem}: done")
        time.sleep(0.2)
    for process in running.values():
        process.send_signal(signal.SIGINT)  # pytest then writes what it has
    for process in running.values():
        try:
            process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    found = summary(names, folder)
    keep(found)
    say(", ".join(f"{count} {state}" for state, count in found["counts"].items()))


def collect(arguments: Sequence[str]) -> list[str]:
    """Names of the tests that pytest selects, without the deselected.

    Raises:
        RuntimeError: A file cannot be imported, or nothing is selected; says what pytest said.
    """
    command = [*PYTEST, "--collect-only", "-q", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    counted = [line for line in done.stdout.splitlines() if line.startswith("tests/")]
    if done.returncode != 0 or not counted:
        raise RuntimeError(f"pytest collects no tests:\n{(done.stdout + done.stderr)[-2000:]}")
    return counted


def chunks(names: Sequence[str]) -> dict[str, list[str]]:
    """Tests by the process that runs them, in pytest's order."""
    files: dict[str, list[str]] = {}
    for name in names:
        files.setdefault(name.partition("::")[0], []).append(name)
    found: dict[str, list[str]] = {}
    for file, its in files.items():
        stem = file.removesuffix(".py").replace("/", ".")
        for number, start in enumerate(range(0, len(its), CHUNK), 1):
            of = f".{number}" if len(its) > CHUNK else ""
            found[f"{stem}{of}"] = its[start : start + CHUNK]
    return found


def environment() -> dict[str, str]:
    """Without plugins that happen to be there; kernels are compiled in the process itself."""
    return {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def start(stem: str, names: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """Run tests in a process."""
    with (folder / f"{stem}.log").open("wb") as log:
        return subprocess.Popen(
            [*PYTEST, "-v", f"--junitxml={folder / f'{stem}.xml'}", *names],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def summary(names: Sequence[str], folder: Path) -> dict[str, Any]:
    """How each test ended, and how many ended so."""
    ended = {
        outcome.test: outcome
        for file in sorted(folder.glob("*.xml"))
        for outcome in read_results(file)
    }
    outcomes = [ended.get(key_of(name), Outcome(key_of(name), "not run")) for name in names]
    states = [outcome.state for outcome in outcomes]
    return {
        "counts": {state: states.count(state) for state in dict.fromkeys(states)},
        "tests": [asdict(outcome) for outcome in outcomes],
    }


def key_of(name: str) -> str:
    """A test's name as in junit's XML, from one such as `tests/test_x.py::test_y[z]`."""
    path, _, test = name.partition("::")
    function, bracket, values = test.partition("[")
    place = ".".join([path.removesuffix(".py").replace("/", "."), *function.split("::")[:-1]])
    return f"{place}::{function.split('::')[-1]}{bracket}{values}"


def read_results(file: Path) -> list[Outcome]:
    """Outcomes from junit's XML; none if pytest was killed before it was whole."""
    try:
        cases = ElementTree.parse(file).iter("testcase")
    except (OSError, ElementTree.ParseError):
        return []
    found = []
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        state, lines = "passed", ""
        for child in case:
            if child.tag in ("failure", "error"):
                state = "failed"
                lines = "\n".join((child.text or child.get("message") or "").splitlines()[-15:])
            elif child.tag == "skipped" and state == "passed":
                state, lines = "skipped", child.get("message") or ""
        found.append(Outcome(name, state, float(case.get("time") or 0), lines))
    return found
