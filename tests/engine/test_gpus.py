"""GPUs are handed out: those that were given, and never more than a whole one."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_attn.engine.config import ExecutionConfig, ResourcesConfig
from nas_attn.engine.executors import gpus, local
from nas_attn.engine.executors.gpus import check_workers, share_gpus, trials_a_gpu, visible_gpus
from nas_attn.engine.executors.local import LocalExecutor
from nas_attn.engine.executors.places import Places
from nas_attn.engine.loop import SearchLoop
from nas_attn.engine.status import read_status
from nas_attn.engine.store import TrialStore
from nas_attn.errors import SearchError, UsageError
from nas_attn.trials import runner as worker
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.job import TrialJob, TrialResult
from tests.helpers.fakes import OBJECTIVES, kill_drivers, make_loop, telling_jobs
from tests.helpers.telling import as_telling

FOUR = ["4", "5", "6", "7"]


def environment(given: str | None, **more: str) -> dict[str, str]:
    return more if given is None else {"CUDA_VISIBLE_DEVICES": given, **more}


@pytest.mark.parametrize(
    ("given", "count", "seen"),
    [
        (None, 2, ["0", "1"]),
        (None, 0, []),
        ("", 0, []),
        ("3,1", 2, ["3", "1"]),
        (" 3 , 1 ", 2, ["3", "1"]),
        ("GPU-5c1a, GPU-77ab", 2, ["GPU-5c1a", "GPU-77ab"]),
        (
            "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
            1,
            ["GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"],
        ),
        ("GPU-8", 1, ["GPU-8"]),
        ("GPU-5c1a,0", 1, ["GPU-5c1a"]),
        ("0,0", 0, []),
        ("0,1,9", 2, ["0", "1"]),
        ("-1", 0, []),
        ("NoDevFiles", 0, []),
        ("MIG-a,MIG-b,MIG-a", 1, ["MIG-a", "MIG-b"]),
        ("MIG-GPU-8932f937/1/0", 1, ["MIG-GPU-8932f937/1/0"]),
        ("MIG-a,MIG-b", 0, []),
    ],
)
def test_what_was_given_is_not_widened(
    given: str | None, count: int, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch counts what it can see under the variable, of MIG instances the first."""
    monkeypatch.setattr(gpus, "_count", lambda: count)
    assert visible_gpus(environment(given)) == seen


@pytest.mark.parametrize(
    ("given", "slurm", "count", "seen"),
    [
        (None, {"SLURM_JOB_GPUS": "2,3"}, 8, ["2", "3"]),
        (None, {"SLURM_JOB_GPUS": "2,3", "SLURM_STEP_GPUS": "3"}, 8, ["3"]),
        (None, {"SLURM_JOB_GPUS": "2,3"}, 2, ["0", "1"]),  # a control group shows these alone
        (None, {"SLURM_JOB_GPUS": "2,3"}, 0, []),
        (None, {"SLURM_JOB_GPUS": ""}, 2, ["0", "1"]),
        (None, {"SLURM_JOB_GPUS": "0-3"}, 8, ["0", "1", "2", "3"]),
        (None, {"SLURM_JOB_GPUS": "0-1,5"}, 8, ["0", "1", "5"]),
        (None, {"SLURM_JOB_GPUS": "gpu:a100:2"}, 0, []),
        (None, {"SLURM_JOB_ID": "7"}, 4, ["0", "1", "2", "3"]),
        ("1", {"SLURM_JOB_GPUS": "2,3"}, 1, ["1"]),  # as a binding of tasks to GPUs sets it
        ("", {"SLURM_JOB_GPUS": "2,3"}, 0, []),
    ],
)
def test_gpus_of_a_slurm_job(
    given: str | None,
    slurm: dict[str, str],
    count: int,
    seen: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpus, "_count", lambda: count)
    assert visible_gpus(environment(given, **slurm)) == seen


@pytest.mark.parametrize("said", ["gpu:a100:2", "3-1", "0,,1", "0-", "-1", "0-99999999999"])
def test_a_slurm_job_whose_gpus_cannot_be_read_gets_none(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would take those of other jobs."""
    monkeypatch.setattr(gpus, "_count", lambda: 8)
    with pytest.raises(UsageError, match=r"SLURM_JOB_GPUS.* is not understood: set CUDA_VISIBLE"):
        visible_gpus(environment(None, SLURM_JOB_GPUS=said))
    assert visible_gpus(environment("1", SLURM_JOB_GPUS=said)) == ["1"]


@pytest.mark.parametrize(
    ("names", "each", "devices", "share"),
    [
        (["1"], 1, ["1"], 1),
        (FOUR, 1, FOUR, 1),
        (FOUR, 2, ["4,5", "6,7"], 1),
        (FOUR, 3, ["4,5,6"], 1),
        (["GPU-a", "GPU-b"], 0.5, ["GPU-a", "GPU-b"], 2),
        (["0", "1"], 0.4, ["0", "1"], 2),
        (["0", "1"], 0.6, ["0", "1"], 1),
        (["0"], 0.1, ["0"], 10),
        (["0"], 0.3, ["0"], 3),
        (["0"], 1 / 3, ["0"], 3),
        (["MIG-a", "MIG-b"], 1, ["MIG-a", "MIG-b"], 1),
    ],
)
def test_gpus_are_shared(names: list[str], each: float, devices: list[str], share: int) -> None:
    assert share_gpus(names, each) == (devices, share)


@pytest.mark.parametrize(
    ("names", "each", "workers", "message"),
    [
        ([], 1, None, "resources.gpus: a trial wants 1 GPUs, but there are 0; ask for fewer"),
        ([], 0.5, 1, "a trial wants 0.5 GPUs, but there are 0"),
        (["2"], 2, None, r"a trial wants 2 GPUs, but there are 1 \(2\)"),
        (["0", "1"], 1, 3, r"3 trials at a time with 1 GPUs each do not fit, .*; take at most 2"),
        (["0", "1"], 0.6, 3, "execution.workers: .* take at most 2"),
        (["0"], 0.3, 4, "take at most 3"),
        (FOUR, 3, 2, "take at most 1"),
        (["MIG-a", "MIG-b"], 2, None, "resources.gpus: a process can use one MIG instance only"),
    ],
)
def test_more_gpus_than_there_are_is_refused(
    names: list[str],
    each: float,
    workers: int | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: names)
    with pytest.raises(UsageError, match=message):
        LocalExecutor(ExecutionConfig(workers=workers), ResourcesConfig(gpus=each))


def test_gpus_that_an_empty_variable_hides_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("SLURM_JOB_GPUS", "2,3")
    with pytest.raises(
        UsageError, match=r"it is empty, which hides all, though .* has 2, 3: unset"
    ):
        LocalExecutor(ExecutionConfig(), ResourcesConfig(gpus=1))


FRACTIONS = st.one_of(
    st.integers(1, 4).map(float),
    st.floats(1e-3, 1.0),
    st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 1 / 3, 1 / 7, 0.33, 0.34, 0.51]),
)


@given(FRACTIONS)
def test_no_more_trials_than_a_whole_gpu_holds(each: float) -> None:
    share = trials_a_gpu(each)
    assert share == 1 or share * each <= 1 + 1e-12
    assert each > 1 or (share + 1) * each > 1, "nothing is wasted"


@given(each=FRACTIONS, count=st.integers(1, 6), data=st.data())
@settings(deadline=None)
def test_no_gpu_ever_carries_more_than_a_whole_one(
    each: float, count: int, data: st.DataObject
) -> None:
    """Trials come, some want GPUs of their own, and end in any order; all of them run once."""
    names = [f"GPU-{index}" for index in range(count)]
    if int(each) > count:
        with pytest.raises(UsageError):
            share_gpus(names, each)
        return
    devices, share = share_gpus(names, each)
    room = len(devices) * share
    workers = data.draw(st.integers(1, min(room, 9)))
    check_workers(workers, names, each, room)
    places = Places(devices, share, workers)
    waiting: set[int] = set()
    running: dict[int, str] = {}
    alone: set[int] = set()
    for_all: set[int] = set()
    trials = data.draw(st.lists(st.sampled_from(("shares", "alone", "all")), max_size=12))
    left, ran = list(enumerate(trials)), []
    while left or running or waiting:
        while True:
            free = places.next_alone()
            if free is not None:
                number, device = free
                waiting.remove(number)
                alone.add(number)
            elif places.has_room and left:
                number, wants = left.pop(0)
                if wants != "shares":
                    waiting.add(number)
                    for_all |= {number} if wants == "all" else set()
                    places.wait_alone(number, all_places=wants == "all")
                    continue
                device = places.take(number)
            else:
                break
            assert device is not None
            running[number] = device
            ran.append(number)
        assert 0 < len(running) <= workers, "it goes on, with no more than the workers"
        load = Counter(name for device in running.values() for name in device.split(","))
        assert all(count * min(each, 1.0) <= 1 + 1e-9 for count in load.values())
        assert all(len(device.split(",")) == max(1, int(each)) for device in running.values())
        for number in alone & set(running):
            assert Counter(running.values())[running[number]] == 1
        assert len(running) == 1 or not for_all & set(running)
        if left and len(running) < workers and not for_all & (waiting | set(running)):
            shared = [d for d in devices if Counter(running.values())[d] < share]
            held = len(waiting) + len(alone & set(running))
            assert len(shared) <= held, "a GPU is left free only for one that waits for it"
        ended = data.draw(st.sampled_from(sorted(running)))
        del running[ended]
        places.leave(ended)
    assert sorted(ran) == list(range(len(trials)))


@pytest.mark.parametrize(
    ("given", "each", "most"),
    [("GPU-a,GPU-b", 1, 1), ("5", 0.5, 2), ("7,2,5", 2, 1), ("", 0, 2), ("7,2", 0, 2)],
)
@pytest.mark.parametrize("fork_server", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_trials_see_their_gpus(
    given: str,
    each: float,
    most: int,
    fork_server: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Started from nothing or forked; and others see on the record which they have."""
    names = given.split(",")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(gpus, "_count", lambda: len(names))
    monkeypatch.setattr(local, "cpu_count", lambda: 8)
    monkeypatch.setattr(worker, "executable_form", as_telling)
    monkeypatch.setattr(worker, "needs_fairseq", lambda command: True)
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)
    loop = make_loop(tmp_path, trials=5)
    loop.build_job = telling_jobs(tmp_path)
    config = ExecutionConfig(fork_server=fork_server, workers=None if each else 2)
    LocalExecutor(config, ResourcesConfig(gpus=each)).run(loop)
    trials = loop.store.trials()
    assert [trial.is_trained for trial in trials] == [True] * 5
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert len(told) == 5
    for seen, began, _ in told:
        assert seen == "" if not each else set(seen.split(",")) <= set(names)
        for name in seen.split(",") if each else ():
            beside = [s for s, b, e in told if name in s.split(",") and b <= began < e]
            assert 1 <= len(beside) <= most
    recorded = [loop.store.refresh(trial.number).gpus for trial in trials]
    assert Counter(recorded) == (Counter(seen for seen, _, _ in told) if each else {None: 5})


def test_without_gpus_a_search_says_which_it_leaves_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else fairseq would train every trial on all of them, in a process for each."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,2")
    monkeypatch.setattr(gpus, "_count", lambda: 0)
    LocalExecutor(ExecutionConfig(workers=1), ResourcesConfig())
    assert "resources.gpus is 0" not in caplog.text
    monkeypatch.setattr(gpus, "_count", lambda: 2)
    LocalExecutor(ExecutionConfig(workers=1), ResourcesConfig())
    assert "as resources.gpus is 0, though this process may use GPUs: 7, 2" in caplog.text


def memory_search(
    folder: Path, most: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[SearchLoop, list[tuple[str, float, float]]]:
    """A search with two trials on each of two GPUs, of which the memory is enough for `most`."""
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(local, "cpu_count", lambda: 8)
    monkeypatch.setattr(worker, "executable_form", as_telling)
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)
    monkeypatch.setattr("nas_attn.engine.loop.RETRY_SECONDS", (0.0,))
    monkeypatch.setenv("TELLING_MOST", most)
    loop = make_loop(folder, trials=7)
    loop.build_job = telling_jobs(folder)
    LocalExecutor(ExecutionConfig(fork_server=False), ResourcesConfig(gpus=0.5)).run(loop)
    told = folder / "told"
    lines = told.read_text().splitlines() if told.exists() else []
    return loop, [json.loads(line) for line in lines]


def test_what_needs_a_gpu_for_itself_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go on, and no trial is lost."""
    loop, told = memory_search(tmp_path, "1", monkeypatch)
    trials = loop.store.trials()
    assert [trial.is_trained for trial in trials] == [True] * 7
    attempts = [[a["failure"] for a in trial.attempts] for trial in trials]
    assert ["out_of_memory"] in attempts
    assert all(found in ([], ["out_of_memory"]) for found in attempts)
    assert "CUDA out of memory" in next(t for t in trials if t.attempts).attempts[0]["reason"]
    assert {seen for seen, _, _ in told} == {"0", "1"}, "no GPU was left to itself"


def test_what_no_gpu_has_room_for_fails_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, told = memory_search(tmp_path, "0", monkeypatch)
    assert not told
    with pytest.raises(SearchError, match=r"(?s)the baseline \(trial 0\) failed.*max-tokens"):
        loop.outcome()
    first = loop.store.trials()[0]
    assert first.failure == "out_of_memory" and len(first.attempts) == 1


def test_what_another_driver_took_over_while_it_waited_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0"])
    monkeypatch.setattr(local, "cpu_count", lambda: 8)
    monkeypatch.setattr("nas_attn.engine.loop.RETRY_SECONDS", (0.0,))
    executor = LocalExecutor(ExecutionConfig(), ResourcesConfig(gpus=0.5))
    loop, other = make_loop(tmp_path, trials=2), make_loop(tmp_path, trials=2)
    waiting: dict[int, TrialJob] = {}
    (first, _), (second, _) = executor._startable(loop, waiting)
    executor._places.leave(first.number)
    loop.finish(first.number, TrialResult(error="full", failure=FailureKind.OUT_OF_MEMORY))
    assert not list(executor._startable(loop, waiting)) and list(waiting) == [first.number]
    loop.store.claim({"trial": first.number, "generation": 0, "driver": other.leases.driver})
    loop.finish(second.number, TrialResult(losses=(1.0,), seconds=1.0))
    executor._places.leave(second.number)
    assert not list(executor._startable(loop, waiting))
    assert not waiting and executor._places.has_room and not loop.snapshot().running
    kill_drivers()


def test_the_record_says_which_gpus_a_running_trial_has(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    job = loop.next_job()
    assert job is not None
    loop.placed(job.number, "GPU-a,GPU-b")
    assert loop.snapshot().running[0].gpus == "GPU-a,GPU-b"
    watcher = TrialStore("fake", loop.store.storage, OBJECTIVES)
    status = read_status(watcher, trials=12, grace_seconds=60.0)
    assert [running.trial.gpus for running in status.running] == ["GPU-a,GPU-b"]
    kill_drivers()


@pytest.mark.parametrize(
    ("cpus", "workers", "expected", "message"),
    [
        (1, None, 4, None),
        (3, None, 2, r"4 trials fit on the GPUs at a time, but 8 CPUs with 3 threads .* allow 2"),
        (9, None, 1, "allow 1;.*"),
        (3, 4, 4, r"4 trials at a time with 3 CPU threads each are more than the 8 CPUs"),
    ],
)
def test_cpus_count_too(
    cpus: int,
    workers: int | None,
    expected: int,
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By themselves no more trials run than there are CPUs for; who asks for more, gets them."""
    monkeypatch.setattr(local, "visible_gpus", lambda: FOUR)
    monkeypatch.setattr(local, "cpu_count", lambda: 8)
    with caplog.at_level(logging.WARNING):
        executor = LocalExecutor(
            ExecutionConfig(workers=workers), ResourcesConfig(cpus=cpus, gpus=1)
        )
    assert executor.workers == expected
    if message is None:
        assert not caplog.records
    else:
        assert re.search(message, caplog.text)
