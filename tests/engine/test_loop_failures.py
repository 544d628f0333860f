"""Failures in a search: recorded, tried again, or the end of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from nas_attn.engine.candidates import Proposal
from nas_attn.engine.loop import SearchLoop
from nas_attn.engine.trial_record import NewTrial
from nas_attn.errors import DataError, SearchError
from nas_attn.plan import AttentionPlan
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.job import StartFolders, TrialJob, TrialResult
from tests.helpers.fakes import (
    WARM,
    FakeExecutor,
    kill_drivers,
    make_loop,
    trained,
)


def test_a_trial_that_was_never_planned_is_closed(tmp_path: Path) -> None:
    """Records of old hold such trials; now a trial has its plan from the beginning."""
    loop = make_loop(tmp_path)
    number = loop.store.create(NewTrial(attributes={}))
    kill_drivers()
    again = make_loop(tmp_path)
    trial = again.store.trials()[number]
    assert trial.state == TrialState.FAIL
    assert trial.reason == "the driver died before the trial was planned"
    FakeExecutor().run(again)
    assert len(trained(again.store.trials())) == 12


def test_failed_trials_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    FakeExecutor(error=lambda job: "out of memory" if job.number in (3, 5) else None).run(loop)
    trials = loop.store.trials()
    assert [(t.number, t.reason) for t in trials if t.reason] == [
        (3, "out of memory"),
        (5, "out of memory"),
    ]
    assert len(trained(trials)) == 10
    assert loop.snapshot().failed == 2


def test_a_failed_baseline_ends_the_search_and_is_tried_again(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    FakeExecutor(workers=1, error=lambda job: "no such file").run(loop)
    with pytest.raises(SearchError, match=r"the baseline \(trial 0\) failed.*no such file"):
        loop.outcome()
    assert len(loop.store.trials()) == 1
    again = make_loop(tmp_path)
    FakeExecutor().run(again)
    baseline = [t for t in again.store.trials() if t.is_baseline and t.is_trained]
    assert len(baseline) == 1


@pytest.mark.parametrize("kind", [kind for kind in FailureKind if kind.can_retry])
def test_a_fault_that_may_not_come_again_is_tried_again(
    kind: FailureKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_attn.engine.loop.RETRY_SECONDS", (0.0,))
    seen: dict[int, int] = {}

    def error(job: TrialJob) -> TrialResult | None:
        seen[job.number] = seen.get(job.number, 0) + 1
        if job.number == 3 and seen[3] < 3:
            return TrialResult(error="it broke", failure=kind, seconds=1.0)
        return None

    loop = make_loop(tmp_path, trials=6)
    FakeExecutor(error=error).run(loop)
    trials = loop.store.trials()
    assert len(trained(trials)) == 6
    assert [attempt["failure"] for attempt in trials[3].attempts] == [kind, kind]


def out_of_memory(loop: SearchLoop, gpus: str | None, fails: int) -> list[bool]:
    """Run a search in which trial 3 runs out of memory so many times; whether it was alone then."""
    alone: list[bool] = []

    def error(job: TrialJob) -> TrialResult | None:
        if gpus is not None:
            loop.placed(job.number, gpus)
        assert job.number == 3 or not job.alone
        if job.number != 3:
            return None
        alone.append(job.alone)
        lacking = TrialResult(error="no room", failure=FailureKind.OUT_OF_MEMORY, seconds=1.0)
        return lacking if len(alone) <= fails else None

    FakeExecutor(error=error).run(loop)
    return alone


def test_what_ran_out_of_memory_is_continued_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nas_attn.engine.loop.RETRY_SECONDS", (0.0,))
    loop = make_loop(tmp_path, trials=6)
    assert out_of_memory(loop, "GPU-a", 1) == [False, True]
    assert "trial 3: no room; continued alone on its GPUs in 0 s (1 of 2)" in caplog.text
    assert len(trained(loop.store.trials())) == 6


@pytest.mark.parametrize(
    ("gpus", "attempts", "reason"),
    [
        ("GPU-a", 2, "no room\nwith no other trial on the GPU, too, it needs more memory than GPU "
         "GPU-a has: lower max-tokens and raise update-freq by as much, take a larger GPU, or let "
         "fewer trials share one (resources.gpus)"),
        (None, 3, "no room\nalone, too, it needs more memory than there is: run fewer trials at a "
         "time (execution.workers), lower max-tokens, or take a machine with more"),
    ],
)  # fmt: skip
def test_what_runs_out_of_memory_alone_fails_with_advice(
    gpus: str | None,
    attempts: int,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU at once; on a CPU memory may have been short for other reasons."""
    monkeypatch.setattr("nas_attn.engine.loop.RETRY_SECONDS", (0.0,))
    loop = make_loop(tmp_path, trials=6)
    assert out_of_memory(loop, gpus, 9) == [False, True, True][:attempts]
    trial = loop.store.trials()[3]
    assert (trial.failure, trial.reason) == ("out_of_memory", reason)
    assert len(trained(loop.store.trials())) == 5


def short_of_host_memory(loop: SearchLoop) -> list[tuple[bool, bool]]:
    """Trial 3, on a GPU, always lacks the machine's memory; whether it was alone, and where."""
    asked: list[tuple[bool, bool]] = []

    def error(job: TrialJob) -> TrialResult | None:
        loop.placed(job.number, "2")
        if job.number != 3:
            return None
        asked.append((job.alone, job.has_machine))
        kind = FailureKind.OUT_OF_MEMORY
        return TrialResult(error="killed", failure=kind, host_memory=True, seconds=1.0)

    FakeExecutor(error=error).run(loop)
    return asked


def test_the_memory_of_the_machine_is_not_that_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nas_attn.engine.loop.RETRY_SECONDS", (0.0,))
    loop = make_loop(tmp_path, trials=6)
    assert short_of_host_memory(loop) == [(False, False), (True, True), (True, True)]
    assert "trial 3: killed; continued alone on its machine in 0 s (2 of 2)" in caplog.text
    reason = loop.store.trials()[3].reason or ""
    assert "alone, too, it needs more memory than there is" in reason and "GPU" not in reason


def test_where_no_machine_is_kept_free_none_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On Ray a retry is a plain one."""
    monkeypatch.setattr("nas_attn.engine.loop.RETRY_SECONDS", (0.0,))
    loop = make_loop(tmp_path, trials=6)
    loop.frees_machine = False
    assert short_of_host_memory(loop) == [(False, False)] * 3
    assert "trial 3: killed; continued in 0 s (2 of 2)" in caplog.text
    assert "alone" not in caplog.text + (loop.store.trials()[3].reason or "")


def test_trials_of_other_drivers_may_have_taken_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_attn.engine.loop.RETRY_SECONDS", (0.0,))
    loop, other = make_loop(tmp_path, trials=6), make_loop(tmp_path, trials=6)
    first = loop.next_job()
    assert first is not None and other.next_job() is not None
    lacking = TrialResult(error="no room", failure=FailureKind.OUT_OF_MEMORY)
    for _ in range(2):
        loop.placed(first.number, "2")
        loop.finish(first.number, lacking)
        again = loop.next_job()
        assert again is not None and (again.number, again.alone) == (first.number, True)
    loop.placed(first.number, "2")
    loop.finish(first.number, lacking)
    reason = loop.store.trials()[first.number].reason or ""
    assert "with no other trial" not in reason
    assert "other drivers have 1 trials running" in reason
    assert "give each driver its own CUDA_VISIBLE_DEVICES" in reason
    kill_drivers()


def test_what_is_to_be_alone_is_so_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_attn.engine.loop.RETRY_SECONDS", (0.0,))
    loop = make_loop(tmp_path, trials=6)
    job = loop.next_job()
    assert job is not None and not job.alone
    loop.placed(job.number, "0")
    loop.finish(job.number, TrialResult(error="full", failure=FailureKind.OUT_OF_MEMORY))
    kill_drivers()
    again = make_loop(tmp_path, trials=6).next_job()
    assert again is not None and (again.number, again.alone) == (job.number, True)


def test_a_baseline_that_failed_is_trained_by_the_next_search(tmp_path: Path) -> None:
    broken = TrialResult(error="no", failure=FailureKind.TRAINING, seconds=1.0)
    loop = make_loop(tmp_path, trials=4, **WARM)
    FakeExecutor(error=lambda job: broken).run(loop)
    assert loop.has_given_up
    kill_drivers()
    again = make_loop(tmp_path, trials=4, **WARM)
    FakeExecutor().run(again)
    assert [t.is_baseline for t in again.store.trials()] == [True, True, False, False]
    assert len(trained(again.store.trials())) == 3


def test_retries_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_attn.engine.loop.RETRY_SECONDS", (0.0,))
    broken = TrialResult(error="no room", failure=FailureKind.DISK_FULL, seconds=1.0)
    loop = make_loop(tmp_path, trials=6)
    executor = FakeExecutor(error=lambda job: broken if job.number == 3 else None)
    executor.run(loop)
    trial = loop.store.trials()[3]
    assert executor.ran.count(3) == 3
    assert (trial.state, trial.failure, trial.reason) == (TrialState.FAIL, "disk_full", "no room")


def test_what_would_fail_again_is_not_tried_again(tmp_path: Path) -> None:
    nan = TrialResult(error="the loss is nan", failure=FailureKind.NOT_FINITE, seconds=1.0)
    loop = make_loop(tmp_path, trials=6)
    executor = FakeExecutor(error=lambda job: nan if job.number == 3 else None)
    executor.run(loop)
    assert executor.ran.count(3) == 1
    assert loop.store.trials()[3].failure == "not_finite"


def test_a_study_in_which_everything_fails_ends_early(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, trials=50, give_up_after=4)
    FakeExecutor(error=lambda job: "no such module" if job.number > 2 else None).run(loop)
    with pytest.raises(
        SearchError, match=r"[45] trials in a row failed \(. training_error\).*module"
    ):
        loop.outcome()
    assert len(loop.store.trials()) <= 9


def test_proposals_that_come_to_nothing_end(tmp_path: Path) -> None:
    """A proposer that offers nothing else than what is refused does not fill the record."""
    loop = make_loop(tmp_path, trials=5)
    real = loop.proposer.propose

    def propose() -> Proposal | None:
        found = real()
        if found is None or found.number == 0:
            return found
        return replace(found, excess="9 total are more than the limit of 8")

    loop.proposer.propose = propose  # type: ignore[method-assign]
    FakeExecutor(workers=1).run(loop)
    with pytest.raises(SearchError, match=r"80 proposals in a row repeated .* over a limit"):
        loop.outcome()
    assert len(loop.store.trials()) == 81


def test_a_loss_that_is_no_number_is_a_failed_trial(tmp_path: Path) -> None:
    """Whichever executor reports it."""
    loop = make_loop(tmp_path, trials=6)
    odd = {3: (0.5, math.inf), 4: (math.nan,)}
    results = {number: TrialResult(losses=losses, seconds=1.0) for number, losses in odd.items()}
    FakeExecutor(error=lambda job: results.get(job.number)).run(loop)
    trials = loop.store.trials()
    assert [(t.state, t.failure) for t in trials[3:5]] == [(TrialState.FAIL, "not_finite")] * 2
    assert trials[3].reason == "the loss is 0.5, inf"
    assert len(trained(trials)) == 4


def test_a_pruned_plan_that_is_none_is_a_failed_trial(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, trials=6)
    plans = ({"encoder_self": [{"scheme": "multi_head"}] * 7},)
    odd = TrialResult(losses=(0.5,), plans=plans, seconds=1.0)
    FakeExecutor(error=lambda job: odd if job.number == 3 else None).run(loop)
    trials = loop.store.trials()
    assert (trials[3].state, trials[3].failure) == (TrialState.FAIL, "damaged_files")
    assert len(trained(trials)) == 5


def test_a_trial_that_cannot_be_built_is_a_failed_one(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, trials=6, give_up_after=4)
    build = loop.build_job

    def fail(number: int, plan: AttentionPlan, start: StartFolders) -> TrialJob:
        if number in (2, 3) or number > 4:
            raise DataError(f"no curve for trial {number}")
        return build(number, plan, start)

    loop.build_job = fail
    FakeExecutor().run(loop)
    trials = loop.store.trials()
    assert [t.number for t in trained(trials)] == [0, 1, 4]
    assert trials[2].reason == "no curve for trial 2" and trials[2].failure == "training_error"
    assert len(trials) == 6 and loop.is_over()
    kill_drivers()
    more = make_loop(tmp_path, trials=50, give_up_after=4)
    more.build_job = fail
    FakeExecutor().run(more)
    with pytest.raises(SearchError, match="4 trials in a row failed"):
        more.outcome()


@pytest.mark.parametrize("content", [None, b"PK\3\4 cut off"])
def test_without_what_trials_start_from_none_is_begun(
    content: bytes | None, tmp_path: Path
) -> None:
    loop = make_loop(tmp_path, trials=9, **WARM)
    build = loop.build_job
    start = tmp_path / "00000" / "seed-1" / "start" / "checkpoint_best.pt"
    start.parent.mkdir(parents=True)
    torch.save({}, start)

    def warm(number: int, plan: AttentionPlan, folders: StartFolders) -> TrialJob:
        job = build(number, plan, folders)
        return replace(job, needs=(str(start),) if number else ())

    loop.build_job = warm
    executor = FakeExecutor(workers=1)

    def lose_it(job: TrialJob) -> None:
        if job.number == 2:
            (tmp_path / "00000" / "commands.sh").touch()
            start.unlink()
            if content is not None:
                start.write_bytes(content)

    executor.error = lose_it
    executor.run(loop)
    trials = loop.store.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3, "none has failed"
    with pytest.raises(SearchError) as error:
        loop.outcome()
    fault = "is gone" if content is None else "is damaged"
    assert f"{start}, which trials start from, {fault}, so none was begun" in str(error.value)
    assert "train the baseline again (remove the checkpoints of" in str(error.value)
    torch.save({}, start)
    kill_drivers()
    again = make_loop(tmp_path, trials=9, **WARM)
    FakeExecutor().run(again)
    assert len(trained(again.store.trials())) == 9
