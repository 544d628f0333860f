"""Whatever a study says, checking it runs, imports and opens nothing, and what passes is exact.

NAS_ATTN_GATE_CASES sets the number of cases; with many of them, `-s` shows how they ended.
"""

from __future__ import annotations

import ast
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas_attn.fairseq_tools.arguments import check_arguments, training_arguments
from nas_attn.fairseq_tools.config import TrainingConfig
from nas_attn.fairseq_tools.flags import ALIASES, INVERTED, JUDGES, OWNED, REASONS, dashed
from nas_attn.fairseq_tools.parsed import check_training

CASES = int(os.environ.get("NAS_ATTN_GATE_CASES", "200"))
ROOM = Path(tempfile.mkdtemp(prefix="nas-attn-gate-"))
CANARY = ROOM / "canary"
BASE = {"optimizer": "adam", "lr": 0.003, "max-tokens": 512, "max-epoch": 3}

EXECUTING = ("exec", "os.exec", "os.fork", "os.posix_spawn", "os.system", "subprocess.Popen")
WATCHED = ("import", "open", "os.listdir", "os.mkdir", "os.remove", *EXECUTING)
seen: list[str] = []
_is_watching = False


def _watch(event: str, details: tuple[Any, ...]) -> None:
    if _is_watching and event in WATCHED:
        seen.append(f"{event} {details!r}"[:2000])


sys.addaudithook(_watch)


@contextmanager
def watching() -> Iterator[list[str]]:
    """What Python opens, imports or runs meanwhile."""
    global _is_watching
    seen.clear()
    _is_watching = True
    try:
        yield seen
    finally:
        _is_watching = False


def _make_canaries() -> None:
    folder = CANARY / "plugin"
    folder.mkdir(parents=True, exist_ok=True)
    touch = f"open({str(ROOM / 'touched')!r}, 'w').close()"
    (folder / "__init__.py").write_text(touch)
    (ROOM / "canary_module.py").write_text(touch)
    (CANARY / "file.txt").write_text("1 2\nword 0.1 0.2\n")


RUN = [
    f"open({str(ROOM / 'touched')!r}, 'w')",
    "__import__('canary_module') and (0.9, 0.98)",
    "(0.9, 0.98) if __import__('os').system('canary') else 1",
    "[x for x in (1, 2)]",
    "lambda: canary_module",
]
INJECTED = [
    f"--user-dir={CANARY / 'plugin'}",
    f"x --user-dir {CANARY / 'plugin'}",
    f"--restore-file={CANARY / 'file.txt'}",
    f"{CANARY / 'file.txt'}",
    f"{CANARY / 'plugin'}",
    "canary_module",
    "--max-epoch=1",
    f"@{CANARY / 'file.txt'}",
    "${oc.env:HOME}",
    "a', b='c",
    "\\",
    "a\nb",
    "valid,test",
    "test",
]
SOUND: list[Any] = [
    1, 2, 0, -1, 10**9, 0.1, 0.5, 1e-3, 1.5, -0.1, True, False, "", "0.1", "(0.9, 0.98)", "1,2",
    "[1, 2]", "{}", '{"beam": 4}', "{'1': 0.1}", "(1e-30, 1e-3)", "adam", "sgd", "nag", "cosine",
    "inverse_sqrt", "grouped_cross_entropy", "label_smoothed_cross_entropy", "relu", "none",
    "space", "tensorboard", "@@ ", "complete", "[(1, 64), (2, 128)]", "no_c10d",
]  # fmt: skip
KNOWN = sorted({*JUDGES, *REASONS, *OWNED, *ALIASES})
names = st.one_of(
    st.sampled_from(sorted(JUDGES)),
    st.sampled_from(KNOWN),
    st.sampled_from(KNOWN).map(lambda name: name.replace("-", "_")),
    st.sampled_from(KNOWN).map(lambda name: name[:-1]),
    st.tuples(st.sampled_from(KNOWN), st.sampled_from(INJECTED)).map("=".join),
    st.sampled_from(KNOWN).map(lambda name: f"--{name}"),
    st.text(max_size=8),
)
values = st.one_of(
    st.sampled_from(SOUND),
    st.sampled_from(SOUND),
    st.sampled_from(RUN),
    st.sampled_from(INJECTED),
    st.integers(-5, 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.booleans(),
)
fitting = st.sampled_from(
    [(name, value) for name, judge in JUDGES.items() for value in SOUND if judge(value) == ""]
)
cases = st.one_of(
    st.dictionaries(names, values, min_size=1, max_size=4),
    st.lists(fitting, min_size=1, max_size=3).map(dict),
    st.tuples(fitting, names, values).map(lambda found: dict([found[0], found[1:]])),
)
ends: Counter[str] = Counter()


def _is_said(flag: str, value: Any, parsed: Any) -> bool:
    """Whether a parsed argument is the value of the study, in fairseq's type."""
    if isinstance(value, bool):
        return bool(parsed) == value
    if isinstance(parsed, list):
        said = ast.literal_eval(str(value))
        return parsed == list(said if isinstance(said, tuple | list) else [said])
    return str(parsed) == str(value) or parsed == float(value)


@given(
    task=st.sampled_from(["translation", "language_modeling", "masked_lm"]),
    arguments=cases,
)
@settings(
    max_examples=CASES,
    deadline=None,
    derandomize="NAS_ATTN_GATE_CASES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def _check_a_case(task: str, arguments: dict[str, Any]) -> None:
    training = TrainingConfig.model_validate({"task": task, "arguments": BASE | arguments})
    with watching() as events:
        faults = check_arguments(training)
        if not faults:
            faults = list(check_training(training_arguments(training), training.arguments))
    noted = [event for event in events if str(ROOM) in event or "canary" in event]
    ran = [event for event in events if event.split()[0] in EXECUTING]
    assert not noted, noted
    assert not ran, ran
    assert not (ROOM / "touched").exists()
    assert "canary_module" not in sys.modules
    assert all(fault.key.startswith("arguments") and fault.message for fault in faults)
    ends["refused" if faults else "passed"] += 1
    if faults:
        return
    said = training_arguments(training)
    plain = training_arguments(training.model_copy(update={"arguments": BASE}))
    flags = {ALIASES.get(dashed(name), dashed(name)): v for name, v in (BASE | arguments).items()}
    for flag, value in flags.items():
        parsed = getattr(said, flag.replace("-", "_"), None)
        if value is not False or flag in INVERTED:
            assert flag == "eval-bleu-remove-bpe" or _is_said(flag, value, parsed), (flag, parsed)
    # grouped-shuffling asks for update-epoch-batch-itr, which nas-attn asks for always.
    for flag in (OWNED | REASONS.keys()) - {"update-epoch-batch-itr"}:
        name = flag.replace("-", "_")
        assert getattr(said, name, None) == getattr(plain, name, None), flag


@pytest.fixture
def _canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    _make_canaries()
    monkeypatch.syspath_prepend(str(ROOM))


@pytest.mark.usefixtures("_canaries")
def test_checking_runs_imports_and_opens_nothing() -> None:
    # Modules that fairseq imports late are imported now, so that an import is the case's own.
    for task in ("translation", "language_modeling", "masked_lm"):
        check_arguments(TrainingConfig.model_validate({"task": task, "arguments": BASE}))
    _check_a_case()
    sys.stdout.write(f"{sum(ends.values()):,} cases, {dict(ends)}: nothing run or opened\n")
    assert ends["passed"] > CASES / 20
    assert ends["refused"] > CASES / 4


@pytest.mark.usefixtures("_canaries")
def test_the_watch_sees_what_would_be_run() -> None:
    with watching() as events:
        eval(RUN[0]).close()
        (CANARY / "file.txt").read_text()
        __import__("canary_module")
    assert sum("canary" in event or str(ROOM) in event for event in events) >= 3
    (ROOM / "touched").unlink()
    sys.modules.pop("canary_module")
