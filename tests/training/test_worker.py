"""One trial, with stand-ins for fairseq's commands: results, failures, interruption, repair."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_attn import validation_log
from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.prune import Pruned
from nas_attn.plan import AttentionPlan
from nas_attn.trials import runner as worker
from nas_attn.trials import steps
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.job import CHECKPOINT, Progress, SeedRun, TrialJob, TrialResult
from nas_attn.trials.layout import checkpoint_is_whole, repair_checkpoints
from nas_attn.trials.processes.programs import executable_form
from nas_attn.trials.runner import TrialRun
from nas_attn.trials.scores import parse_decoding_seconds, parse_scores
from nas_attn.validation_log import read_report

STAND_IN = """
import json, os, subprocess, sys, time
losses, parameters, ending = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with open(os.environ["NAS_ATTN_REPORT"], "a") as report:
    for update, loss in enumerate(losses):
        size = {"total": parameters}
        phase, loss = loss if isinstance(loss, list) else (None, loss)
        line = {"num_updates": update, "metrics": {"loss": loss}, "parameters": size}
        line["epoch"] = 5
        line["phase"] = phase
        report.write(json.dumps(line) + "\\n")
print("working with", os.environ["OMP_NUM_THREADS"], "threads", flush=True)
if ending == "family":
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    print("child", subprocess.Popen([sys.executable, "-c", stubborn]).pid, flush=True)
if ending in ("hang", "family"):
    time.sleep(60)
if ending == "alive":
    for _ in range(25):
        print("still here", flush=True)
        time.sleep(0.1)
if ending == "fail":
    raise ValueError("no such thing")
if ending.startswith("kill"):
    os.kill(os.getpid(), int(ending.removeprefix("kill")))
if ending.startswith("say"):
    sys.exit(ending.removeprefix("say"))
"""
PRINTING = """
import os, sys
path, text = sys.argv[1:3]
assert os.path.basename(path) == "checkpoint_best.pt" and "NAS_ATTN_REPORT" not in os.environ
if text == "fail":
    sys.exit("RuntimeError: no such subset")
print(text)
"""
GENERATED = """\
INFO:fairseq_cli.generate:NOTE: hypothesis and token scores are output in base 2
INFO:fairseq_cli.generate:Translated 1,061 sentences (7,950 tokens) in 0.1s (530.87 sentences/s, \
6918.67 tokens/s)
WARNING:fairseq_cli.generate:If you are using BPE on the target side, the BLEU score is computed \
on BPE tokens, not on proper words.  Use --sacrebleu for standard 13a BLEU tokenization
Generate test with beam=5: BLEU = 12.08 40.7/20.1/10.0/5.0 (BP = 1.000 ratio = 1.773 \
hyp_len = 734 ref_len = 414)
"""
MODELLED = """\
INFO:fairseq_cli.eval_lm:Evaluated 475 tokens in 0.0s (92527.08 tokens/s)
INFO:fairseq_cli.eval_lm:Loss (base 2): 6.3292, Perplexity: 80.40
"""
VALIDATED = """\
2026-11-25 09:42:03 | INFO | fairseq.tasks.fairseq_task | creating new batches for epoch 1
2026-11-25 09:42:03 | INFO | test | valid on 'test' subset | loss 5.952 | ppl 61.9 | wps 0 | \
wpb 483 | bsz 8
"""


def stand_in(command: tuple[str, ...]) -> list[str]:
    program = STAND_IN if command[0] == "fairseq-train" else PRINTING
    return [sys.executable, "-c", program, *command[1:]]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "executable_form", stand_in)


def make_job(
    folder: Path,
    *runs: tuple[list[Any], str],
    parameters: int = 10,
    evaluation: tuple[str, ...] = (),
    start: tuple[str, ...] = (),
    **more: Any,
) -> TrialJob:
    return TrialJob(
        number=3,
        folder=str(folder),
        metric="loss",
        parameters=10,
        **more,
        runs=tuple(
            SeedRun(
                seed=seed,
                folder=str(folder / f"seed-{seed}"),
                command=("fairseq-train", json.dumps(losses), str(parameters), ending),
                evaluation=evaluation,
                start=start,
            )
            for seed, (losses, ending) in enumerate(runs, start=1)
        ),
    )


def finish(trial: TrialRun, seconds: float = 20.0) -> TrialResult:
    deadline = time.monotonic() + seconds
    while trial.result is None:
        assert time.monotonic() < deadline
        trial.poll()
        time.sleep(0.02)
    return trial.result


def pid_of(trial: TrialRun) -> int:
    assert trial._activity is not None
    return trial._activity.running.pid


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_best_loss_of_each_seed(tmp_path: Path) -> None:
    result = finish(TrialRun(make_job(tmp_path, ([3.0, 1.0, 2.0], "end"), ([4.0, 2.0], "end"))))
    assert result.error is None
    assert result.losses == (1.0, 2.0)
    assert result.loss == 1.5
    assert result.seconds > 0
    log = (tmp_path / "seed-1" / "train.log").read_text()
    assert log == "working with 1 threads\n"


def test_progress_is_told_once(tmp_path: Path) -> None:
    trial = TrialRun(make_job(tmp_path, ([3.0, 1.0], "end"), ([4.0], "end")))
    news = []
    while trial.result is None:
        news += trial.poll()
        time.sleep(0.02)
    assert [(n.seed, n.num_updates, n.loss) for n in news] == [
        (1, 0, 3.0),
        (1, 1, 1.0),
        (2, 0, 4.0),
    ]
    assert trial.poll() == []


def test_progress_says_where_a_training_is(tmp_path: Path) -> None:
    lines = [["training", 3.0], ["settled", 2.0]]
    trial = TrialRun(make_job(tmp_path, ([4.0], "end"), (lines, "fail")))
    news: list[Progress] = []
    while trial.result is None:
        news += trial.poll()
    places = [(n.seed_index, n.validation, n.settled) for n in news]
    assert places == [(0, 1, True), (1, 1, False), (1, 2, True)]


@pytest.mark.parametrize(
    ("end", "last"),
    [
        ({"last_update": 1}, [(2, 1)]),
        ({"last_epoch": 5}, [(2, 0), (2, 1)]),
        ({"last_epoch": 6}, []),
        ({"last_epoch": 6, "last_update": 1}, [(2, 1)]),
        ({}, []),
    ],
)
def test_progress_says_when_a_trial_is_about_to_end(
    end: dict[str, int], last: list[tuple[int, int]], tmp_path: Path
) -> None:
    """That is in the last epoch of its last seed; the stand-in is always in its fifth."""
    trial = TrialRun(make_job(tmp_path, ([4.0, 3.0], "end"), ([4.0, 2.0], "end"), **end))
    news: list[Progress] = []
    while trial.result is None:
        news += trial.poll()
    assert [(n.seed, n.num_updates) for n in news if n.is_last] == last


def start_of(ending: str, *losses: float) -> tuple[str, ...]:
    return ("fairseq-train", json.dumps(losses), "10", ending)


def test_a_start_comes_first_and_counts_for_time_only(tmp_path: Path) -> None:
    job = make_job(tmp_path, ([3.0, 2.0], "end"), start=start_of("end", 1.0, 0.5, 0.4))
    trial = TrialRun(job)
    news: list[Progress] = []
    while trial.result is None:
        news += trial.poll()
    assert [(n.num_updates, n.loss, n.is_start) for n in news] == [
        (0, 1.0, True),
        (1, 0.5, True),
        (2, 0.4, True),
        (0, 3.0, False),
        (1, 2.0, False),
    ]
    assert trial.result.losses == (2.0,)
    assert trial.result.updates == 3
    assert len(read_report(tmp_path / "seed-1" / "start")) == 3
    commands = (tmp_path / "commands.sh").read_text().splitlines()
    assert [line.split()[2] for line in commands] == ["'[1.0,", "'[3.0,"]
    again = TrialRun(job)
    assert finish(again).updates == 3
    assert (tmp_path / "seed-1" / "start.log").read_text().count("working") == 1


def test_a_start_that_fails(tmp_path: Path) -> None:
    result = finish(TrialRun(make_job(tmp_path, ([3.0], "end"), start=start_of("fail", 1.0))))
    assert result.failure == "training_error"
    assert "no such thing" in (result.error or "")
    result = finish(TrialRun(make_job(tmp_path, ([3.0], "end"), start=start_of("end", math.nan))))
    assert result.failure == "not_finite"
    assert not (tmp_path / "seed-1" / "train.log").exists()


def test_a_start_that_hangs_is_killed_and_made_again(tmp_path: Path) -> None:
    job = make_job(tmp_path, ([3.0], "end"), start=start_of("hang", 1.0), hang_seconds=1.5)
    assert finish(TrialRun(job)).failure == "hung"
    mended = dataclasses.replace(
        job, runs=(dataclasses.replace(job.runs[0], start=start_of("end", 1.0)),)
    )
    result = finish(TrialRun(mended))
    assert result.losses == (3.0,)
    assert result.seconds > 1.5


@pytest.mark.parametrize(
    ("losses", "ending", "parameters", "kind", "error"),
    [
        ([1.0], "fail", 10, "training_error", r"status 1:\n.*ValueError: no such thing"),
        ([], "end", 10, "training_error", "ended without a validation"),
        ([1.0, math.nan], "end", 10, "not_finite", "the validation loss of seed 1 is nan"),
        ([1.0], "end", 11, "training_error", "counted 10 parameters, but fairseq built 11"),
        ([1.0], "sayCUDA out of memory. Tried", 10, "out_of_memory", "CUDA out of memory"),
        ([1.0], "sayOSError: No space left on device", 10, "disk_full", "No space"),
        ([1.0], "sayFloatingPointError: gradients are Nan/Inf", 10, "not_finite", "Nan/Inf"),
        ([1.0], "kill9", 10, "killed", r"by SIGKILL \(the kernel's out-of-memory killer may be"),
        ([1.0], "kill15", 10, "killed", r"fairseq-train \(seed 1\) was killed by SIGTERM$"),
    ],
)
def test_errors_are_results(
    losses: list[float], ending: str, parameters: int, kind: str, error: str, tmp_path: Path
) -> None:
    result = finish(TrialRun(make_job(tmp_path, (losses, ending), parameters=parameters)))
    assert result.losses == ()
    assert result.error is not None
    assert re.search(error, result.error, re.DOTALL)
    assert result.failure == kind


def test_the_kernel_kills_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([4, 5])
    for module in (worker, steps):
        monkeypatch.setattr(module, "count_oom_kills", lambda: next(counts))
    result = finish(TrialRun(make_job(tmp_path, ([1.0], "kill9"))))
    assert result.failure is FailureKind.OUT_OF_MEMORY
    assert result.error is not None and "out-of-memory killer was at work" in result.error


def test_only_this_start_s_log_counts(tmp_path: Path) -> None:
    first = finish(TrialRun(make_job(tmp_path, ([1.0], "sayCUDA out of memory"))))
    assert first.failure is FailureKind.OUT_OF_MEMORY
    second = finish(TrialRun(make_job(tmp_path, ([1.0], "fail"))))
    assert second.failure is FailureKind.TRAINING
    assert second.error is not None and "CUDA" not in second.error
    assert second.seconds > first.seconds > 0, "earlier attempts count"


def test_a_loss_that_is_no_number_ends_a_training(tmp_path: Path) -> None:
    trial = TrialRun(make_job(tmp_path, ([1.0, math.nan], "hang")))
    began = time.monotonic()
    result = finish(trial)
    assert time.monotonic() - began < 10
    assert result.failure is FailureKind.NOT_FINITE
    assert result.error == "the validation loss of seed 1 is nan"


def test_a_training_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(steps, "STOP_GRACE_SECONDS", 0.5)
    trial = TrialRun(make_job(tmp_path, ([1.0], "family"), hang_seconds=1.0))
    log = tmp_path / "seed-1" / "train.log"
    trial.poll()
    wait_for(lambda: "child" in log.read_text())
    child = int(log.read_text().split()[-1])
    result = finish(trial)
    assert result.failure is FailureKind.HUNG
    assert result.error is not None
    assert re.search(r"seed 1\) was stopped: it had written nothing for 1 s", result.error)
    wait_for(lambda: not is_running(child))


def test_a_training_that_writes_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "WATCH_SECONDS", 0.05)
    result = finish(TrialRun(make_job(tmp_path, ([1.0], "alive"), hang_seconds=2.0)))
    assert result.losses == (1.0,)


@pytest.mark.parametrize(
    "where", ["write_trial_files", "lock_folder", "repair_checkpoints", "_prune"]
)
def test_a_full_disk_is_a_result(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(worker, where, fail)
    result = finish(TrialRun(make_job(tmp_path, ([["settled", 1.0]], "end"))))
    assert result.failure is FailureKind.DISK_FULL
    assert result.error is not None and "No space left on device" in result.error


def test_data_that_a_node_lacks(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    result = finish(TrialRun(make_job(tmp_path, ([1.0], "end"), data_folder=absent)))
    assert result.failure is FailureKind.NO_DATA
    assert result.error == (
        f"{socket.gethostname()} has no data folder {absent}: share the folder with every node, "
        "or set execution.transfer to object_store"
    )


def test_the_files_of_a_trial(tmp_path: Path) -> None:
    job = make_job(tmp_path, ([1.0], "end"), plan={"decoder_self": {"scheme": "shared"}})
    finish(TrialRun(job))
    assert json.loads((tmp_path / "plan.json").read_text()) == job.plan
    assert (tmp_path / "commands.sh").read_text().startswith("OMP_NUM_THREADS=1 fairseq-train ")


@pytest.mark.parametrize(
    ("output", "scores"),
    [
        (GENERATED, {"bleu": 12.08}),
        ("Generate test with beam=4: BLEU4 = 34.41, 68.9/42.6 (BP=0.96, ratio=1)", {"bleu": 34.41}),
        ("BLEU|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp = 27.3 59.9/33.1", {"bleu": 27.3}),
        (MODELLED, {"nll_loss": 6.3292, "ppl": 80.4}),
        (VALIDATED, {"loss": 5.952, "ppl": 61.9}),
        (
            VALIDATED.replace("| ppl", "| nll_loss 4.5 | ppl"),
            {"loss": 5.952, "nll_loss": 4.5, "ppl": 61.9},
        ),
    ],
)
def test_scores(output: str, scores: dict[str, float]) -> None:
    assert parse_scores(output) == scores


def test_output_without_figures() -> None:
    with pytest.raises(NasAttnError, match="printed no score:\nnothing"):
        parse_scores("nothing")
    with pytest.raises(NasAttnError, match="did not say how fast"):
        parse_decoding_seconds("nothing")


def test_seconds_for_a_sentence() -> None:
    assert parse_decoding_seconds(GENERATED) == pytest.approx(1 / 530.87)


def test_evaluation_and_measurement(tmp_path: Path) -> None:
    rates = "Translated 9 sentences (8 tokens) in 1.0s (4.00 sentences/s, 2 tokens/s)"
    job = make_job(
        tmp_path,
        ([1.0], "end"),
        ([2.0], "end"),
        evaluation=("fairseq-eval-lm", CHECKPOINT, MODELLED),
        measure=("fairseq-generate", CHECKPOINT, rates),
        measure_runs=2,
    )
    result = finish(TrialRun(job))
    assert result.error is None
    assert result.tests == ({"nll_loss": 6.3292, "ppl": 80.4},) * 2
    assert result.measured == {"decoding_seconds": 0.25}
    assert (tmp_path / "seed-2" / "test.log").read_text() == MODELLED + "\n"
    assert (tmp_path / "seed-1" / "measure.log").read_text() == (rates + "\n") * 2
    assert not (tmp_path / "seed-2" / "measure.log").exists()


def test_finished_steps_are_not_repeated(tmp_path: Path) -> None:
    """A trial whose measurement fails goes on there: training and evaluation stay as they are."""
    job = make_job(
        tmp_path,
        ([1.0], "end"),
        evaluation=("fairseq-generate", CHECKPOINT, GENERATED),
        measure=("fairseq-generate", CHECKPOINT, "fail"),
    )
    first = finish(TrialRun(job))
    assert first.failure is FailureKind.TRAINING
    assert first.error is not None
    assert re.search(r"fairseq-generate \(seed 1\) ended.*no such subset", first.error, re.DOTALL)
    logs = [tmp_path / "seed-1" / name for name in ("train.log", "test.log")]
    before = [log.read_text() for log in logs]
    mended = dataclasses.replace(job, measure=("fairseq-generate", CHECKPOINT, GENERATED))
    result = finish(TrialRun(mended))
    assert result.measured["decoding_seconds"] == pytest.approx(1 / 530.87)
    assert result.tests == ({"bleu": 12.08},)
    assert [log.read_text() for log in logs] == before
    assert result.seconds == first.seconds, "only training counts"
    measured = (tmp_path / "seed-1" / "measure.log").read_text()
    assert finish(TrialRun(mended)) == result
    assert (tmp_path / "seed-1" / "measure.log").read_text() == measured


def test_the_loss_on_the_test_side(tmp_path: Path) -> None:
    printed = "| INFO | valid on 'test' subset | loss 5.2 | nll_loss 3.25 | ppl 9.51"
    job = make_job(tmp_path, ([1.0], "end"), evaluation=("fairseq-generate", CHECKPOINT, GENERATED))
    (run,) = job.runs

    def measured(text: str) -> TrialResult:
        validate = ("fairseq-validate", CHECKPOINT, text)
        return finish(
            TrialRun(dataclasses.replace(job, runs=(dataclasses.replace(run, test_loss=validate),)))
        )

    lacking = measured(printed.replace(" loss 5.2 |", ""))
    assert lacking.error == "fairseq-validate (seed 1): it printed no loss, but nll_loss, ppl"
    assert measured(printed).tests == ({"loss": 5.2, "bleu": 12.08},)


def test_an_evaluation_without_a_score(tmp_path: Path) -> None:
    evaluation = ("fairseq-validate", CHECKPOINT, "done")
    result = finish(TrialRun(make_job(tmp_path, ([1.0], "end"), evaluation=evaluation)))
    assert result.failure is FailureKind.TRAINING
    assert result.error == "fairseq-validate (seed 1): it printed no score:\ndone"


def test_reports_are_read_when_they_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = validation_log._read_report

    def counted(path: Path) -> Any:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(validation_log, "_read_report", counted)
    trial = TrialRun(make_job(tmp_path, ([1.0], "hang")))
    wait_for(trial.poll)
    for _ in range(20):
        trial.poll()
    trial.stop()
    assert len(reads) == 1


def test_what_was_better_before_pruning_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = AttentionPlan.parse('{"encoder_self": {"scheme": "grouped_head", "kept_heads": 2}}')

    def prune(path: Path, out: Path) -> Pruned:
        assert path.parent == out.parent
        return Pruned(plan, {}, (2, 1), (2, 1))

    monkeypatch.setattr(worker, "prune_checkpoint", prune)
    lines = [["training", 0.5], ["voting", 0.4], ["settled", 2.0], ["settled", 1.0]]
    job = make_job(tmp_path, (lines, "end"), (lines[:3], "end"))
    result = finish(TrialRun(job))
    assert result.losses == (1.0, 2.0)
    assert result.plans == (plan.to_json(), plan.to_json())
    assert finish(TrialRun(job)).plans == result.plans, "also when it is looked at again"


def test_a_training_that_ends_before_its_vote(tmp_path: Path) -> None:
    lines = [["training", 0.5], ["voting", 0.4]]
    result = finish(TrialRun(make_job(tmp_path, (lines, "end"))))
    assert result.error is not None
    assert "ended before the vote was over (voting): vote earlier or train longer" in result.error


def test_a_metric_that_fairseq_does_not_log(tmp_path: Path) -> None:
    job = TrialJob.from_json({**make_job(tmp_path, ([1.0], "end")).to_json(), "metric": "bleu"})
    result = finish(TrialRun(job))
    assert result.error == "fairseq logged no metric 'bleu'; it logged loss"


def test_a_group_dies_with_its_leader(tmp_path: Path) -> None:
    """What fairseq has started for other GPUs must not go on when the first process is killed."""
    trial = TrialRun(make_job(tmp_path, ([1.0], "family")))
    log = tmp_path / "seed-1" / "train.log"
    trial.poll()
    wait_for(lambda: "child" in log.read_text())
    child = int(log.read_text().split()[-1])
    assert is_running(child)
    os.kill(pid_of(trial), signal.SIGKILL)
    assert finish(trial).failure is FailureKind.KILLED
    wait_for(lambda: not is_running(child))


def test_stopping_ends_the_whole_group(tmp_path: Path) -> None:
    trial = TrialRun(make_job(tmp_path, ([1.0], "family")))
    log = tmp_path / "seed-1" / "train.log"
    trial.poll()
    wait_for(lambda: "child" in log.read_text())
    pids = [pid_of(trial), int(log.read_text().split()[-1])]
    trial.stop()
    wait_for(lambda: not any(is_running(pid) for pid in pids))


def test_stopping_and_going_on(tmp_path: Path) -> None:
    """A finished seed is not trained again; the interrupted one is; time adds up."""
    trial = TrialRun(make_job(tmp_path, ([1.0], "end"), ([2.0], "hang")))
    while not (tmp_path / "seed-2" / "train.log").exists():
        trial.poll()
        time.sleep(0.02)
    trial.stop()
    assert trial.result is None
    first_log = (tmp_path / "seed-1" / "train.log").stat().st_mtime_ns
    result = finish(TrialRun(make_job(tmp_path, ([1.0], "end"), ([2.0], "end"))))
    assert result.losses == (1.0, 2.0)
    assert (tmp_path / "seed-1" / "train.log").stat().st_mtime_ns == first_log


def test_trainings_die_with_their_driver(tmp_path: Path) -> None:
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.training.test_worker import *
worker.executable_form = stand_in
trial = TrialRun(make_job(Path({str(tmp_path)!r}), ([1.0], "hang")))
trial.poll()
print(pid_of(trial), flush=True)
time.sleep(60)
"""
    driver = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    child = int(driver.stdout.readline())
    driver.kill()
    driver.wait()
    driver.stdout.close()
    wait_for(lambda: not is_running(child))


def test_one_training_in_a_folder(tmp_path: Path) -> None:
    first = TrialRun(make_job(tmp_path, ([1.0], "hang")))
    first.poll()
    second = TrialRun(make_job(tmp_path, ([2.0], "end")))
    for _ in range(5):
        second.poll()
    assert second._activity is None
    first.stop()
    assert finish(second).losses == (2.0,)


def test_reports_survive_half_lines_and_repeats(tmp_path: Path) -> None:
    lines = [
        {"num_updates": 20, "metrics": {"loss": 2.0}},
        {"num_updates": 10, "metrics": {"loss": 3.0}},
        {"num_updates": 20, "metrics": {"loss": 1.5}},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"num_upd'
    (tmp_path / "report.jsonl").write_text(text)
    assert [(x["num_updates"], x["metrics"]["loss"]) for x in read_report(tmp_path)] == [
        (10, 3.0),
        (20, 1.5),
    ]
    assert read_report(tmp_path / "absent") == []


def test_cut_off_checkpoints_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    best, last = folder / "checkpoint_best.pt", folder / "checkpoint_last.pt"
    torch.save({"weights": torch.ones(1000)}, best)
    last.write_bytes(best.read_bytes()[:-200])
    assert checkpoint_is_whole(best)
    assert not checkpoint_is_whole(last)
    repair_checkpoints(folder)
    assert last.read_bytes() == best.read_bytes()
    best.write_bytes(b"")
    last.write_bytes(b"nonsense")
    repair_checkpoints(folder)
    assert not list(folder.iterdir())


def test_jobs_travel_as_json(tmp_path: Path) -> None:
    job = make_job(
        tmp_path,
        ([1.0], "end"),
        ([2.0], "end"),
        evaluation=("fairseq-generate", CHECKPOINT),
        measure=("fairseq-generate", CHECKPOINT),
        plan={"encoder_self": {"scheme": "shared"}},
        hang_seconds=5.0,
    )
    assert TrialJob.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_jobs_of_earlier_versions(tmp_path: Path) -> None:
    run = {"seed": 1, "folder": "f", "command": ["fairseq-train"]}
    old = {"number": 1, "folder": "f", "metric": "loss", "parameters": 9, "runs": [run]}
    job = TrialJob.from_json(old)
    assert job.runs == (SeedRun(seed=1, folder="f", command=("fairseq-train",)),)
    assert (job.plan, job.measure, job.hang_seconds) == ({}, (), None)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("fairseq-train", "fairseq_cli.train"),
        ("fairseq-generate", "fairseq_cli.generate"),
        ("fairseq-eval-lm", "fairseq_cli.eval_lm"),
        ("fairseq-validate", "fairseq_cli.validate"),
        ("nas-attn-replay", "nas_attn.simulation.command"),
    ],
)
def test_commands_are_run_by_this_python(name: str, module: str) -> None:
    assert executable_form((name, "data")) == [sys.executable, "-m", module, "data"]


def test_unknown_commands() -> None:
    with pytest.raises(NasAttnError, match="cannot run 'rm'; there are fairseq-train"):
        executable_form(("rm", "-rf"))
