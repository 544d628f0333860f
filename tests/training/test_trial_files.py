"""What is read of a trial's folder may have been written by anyone, or half."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_attn.errors import NasAttnError, TrialFileError
from nas_attn.trials import runner as worker
from nas_attn.trials.failures import FailureKind, failure_of_error, last_lines
from nas_attn.trials.job import CHECKPOINT
from nas_attn.trials.layout import (
    checkpoint_is_whole,
    fault_of_start,
    is_of_another_plan,
    read_state,
)
from nas_attn.trials.reports import TrialReports
from nas_attn.trials.runner import TrialRun
from nas_attn.trials.scores import TAIL_BYTES, end_of_log, parse_decoding_seconds, parse_scores
from nas_attn.validation_log import REPORT_VARIABLE, Report, read_report, report_validation
from tests.training.test_worker import GENERATED, finish, make_job, stand_in, wait_for


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "executable_form", stand_in)


def line_of(update: int, loss: Any, **more: Any) -> dict[str, Any]:
    sizes = {"total": 10}
    return {
        "time": 1.0,
        "num_updates": update,
        "parameters": sizes,
        "metrics": {"loss": loss},
    } | more


def write_report(folder: Path, *lines: Any) -> None:
    """Dictionaries as a training writes them; bytes as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "report.jsonl").open("wb") as file:
        for line in lines:
            file.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")


def losses_in(folder: Path) -> list[tuple[int, float]]:
    return [(line["num_updates"], line["metrics"]["loss"]) for line in read_report(folder)]


@pytest.mark.parametrize("left", [b"", b"whole\n", b'{"time": 1.0, "num_upd', b"\n"])
def test_half_a_line_does_not_swallow_the_next(
    left: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.jsonl"
    path.write_bytes(left)
    monkeypatch.setenv(REPORT_VARIABLE, str(path))
    report_validation(20, {"total": 10}, {"loss": 3.745})
    report_validation(30, {"total": 10}, {"loss": 3.9})
    lines = path.read_bytes().removeprefix(left).removeprefix(b"\n").splitlines()
    assert [json.loads(line)["num_updates"] for line in lines] == [20, 30]
    if b"whole" not in left:
        assert losses_in(tmp_path) == [(20, 3.745), (30, 3.9)]


def test_what_earlier_versions_wrote_behind_half_a_line_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = b'{"time": 1.5, "epoch": 2, "num_upd'
    write_report(tmp_path, line_of(10, 3.8961), half, line_of(20, 3.745), half + b"\n")
    report = Report(tmp_path)
    assert [line["num_updates"] for line in report.lines()] == [10, 20]
    report.lines()
    assert caplog.messages == [
        f"{tmp_path}/report.jsonl, line 3: was cut off as it was written, and is left out"
    ]


def test_a_line_that_is_being_written_is_none_yet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_report(tmp_path, line_of(10, 3.0), b'{"time": 1.5, "epoch"')
    assert len(Report(tmp_path).lines()) == 1
    assert not caplog.messages


ODD = [
    b"\xff\n",
    b"3\n",
    b"null\n",
    b"\0" * 200 + b"\n",
    b"[" * 100_000 + b"\n",
    {"num_updates": 5},
    {"num_updates": 5, "metrics": None},
    line_of(5, "3.0"),
    line_of(5, None),
    line_of(5, True),
    line_of(5, 10**400),
    line_of(10**12, 3.0),
    line_of(-1, 3.0),
    line_of(True, 3.0),
    line_of(5.0, 3.0),  # type: ignore[arg-type]
    line_of(5, 3.0, parameters=[10]),
    line_of(5, 3.0, phase=1),
    b'{"time": 1.0, "num_updates": ' + b"9" * 5000 + b', "metrics": {"loss": 1.0}}\xfe\n',
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:30])
def test_an_odd_line_fails_its_trial_in_words(odd: Any, tmp_path: Path) -> None:
    """Whether it was there before the training began, or comes as it runs."""
    write_report(tmp_path / "seed-1", line_of(0, 4.0), odd)
    trial = TrialRun(make_job(tmp_path, ([3.0], "hang")))
    result = finish(trial)
    assert result.failure is FailureKind.DAMAGED
    assert result.error is not None
    assert f"{tmp_path}/seed-1/report.jsonl, line 2: is " in result.error
    assert len(result.error) < 600
    assert trial.spent().updates == 0


def test_an_odd_line_ends_the_process_too(tmp_path: Path) -> None:
    trial = TrialRun(make_job(tmp_path, ([3.0], "family")))
    wait_for(trial.poll)
    activity = trial._activity
    assert activity is not None
    with (tmp_path / "seed-1" / "report.jsonl").open("a") as report:
        report.write("null\n")
    assert finish(trial).failure is FailureKind.DAMAGED
    assert activity.running.poll() is not None
    assert finish(trial).seconds > 0


def test_going_back_and_losses_that_are_no_numbers(tmp_path: Path) -> None:
    odd = [math.nan, math.inf, -math.inf]
    write_report(tmp_path, *(line_of(i, loss) for i, loss in enumerate(odd)), line_of(0, 2.0))
    found = losses_in(tmp_path)
    assert [update for update, _ in found] == [0, 1, 2]
    assert [loss for _, loss in found] == [2.0, math.inf, -math.inf]


def test_a_file_larger_than_any_that_is_written(tmp_path: Path) -> None:
    for name, read in (("report.jsonl", read_report), ("finished.json", read_state)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(400_000_000)
        with pytest.raises(TrialFileError, match=f"{name} is larger than"):
            read(tmp_path)


def test_a_report_of_an_ended_training_that_is_gone(tmp_path: Path) -> None:
    job = make_job(tmp_path, ([3.0], "end"))
    assert finish(TrialRun(job)).losses == (3.0,)
    (tmp_path / "seed-1" / "report.jsonl").unlink()
    result = finish(TrialRun(job))
    assert result.failure is FailureKind.DAMAGED
    assert result.error is not None and "holds no loss, but the training has ended" in result.error


@pytest.mark.parametrize("name", ["report.jsonl", "finished.json", "plan.json", "train.log"])
def test_a_file_that_cannot_be_read_fails_its_trial(name: str, tmp_path: Path) -> None:
    """A folder in its place stands for a missing permission, of which root takes no notice."""
    job = make_job(tmp_path, ([3.0], "fail"))
    (tmp_path / ("" if name == "plan.json" else "seed-1") / name).mkdir(parents=True)
    result = finish(TrialRun(job))
    assert result.failure is FailureKind.UNREADABLE
    assert result.error is not None and name in result.error and "directory" in result.error


@pytest.mark.parametrize(
    "text",
    [
        '{"finished": true, "seco',
        "[]",
        "3",
        "\udcff",
        '{"finished": "yes"}',
        '{"finished": true, "seconds": NaN}',
        '{"finished": true, "seconds": -1}',
        '{"finished": true, "plan": 3}',
        '{"finished": true, "plan": {"encoder_self": {"scheme": 5}}}',
        '{"finished": true, "test": {"bleu": "3"}}',
        '{"finished": true, "test_loss": 3}',
        '{"finished": true, "decoding_seconds": 3}',
    ],
)
def test_a_damaged_state_is_made_again(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "seed-1").mkdir()
    path = tmp_path / "seed-1" / "finished.json"
    path.write_text(text, errors="surrogateescape")
    assert read_state(path.parent) == {}
    assert f"{path} is damaged, so nothing of it is believed: " in caplog.text
    result = finish(TrialRun(make_job(tmp_path, ([3.0], "end"))))
    assert result.losses == (3.0,) and result.error is None
    assert read_state(path.parent)["finished"] is True


def test_what_another_version_adds_to_a_state_stays(tmp_path: Path) -> None:
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "finished.json").write_text('{"seconds": 5, "later": [1]}')
    assert finish(TrialRun(make_job(tmp_path, ([3.0], "end")))).seconds > 5
    assert read_state(tmp_path / "seed-1")["later"] == [1]


def test_a_folder_of_another_plan_is_not_taken_over(tmp_path: Path) -> None:
    """As where a record is new and the run folder is not."""
    old, new = ({"encoder_self": {"scheme": scheme}} for scheme in ("multi_query", "single_head"))
    assert finish(TrialRun(make_job(tmp_path, ([1.0], "end"), plan=old))).losses == (1.0,)
    result = finish(TrialRun(make_job(tmp_path, ([3.0], "end"), plan=new)))
    assert result.failure is FailureKind.DAMAGED
    assert result.error is not None and "they belong to another record" in result.error
    assert not is_of_another_plan(tmp_path, old)
    (tmp_path / "plan.json").write_text('{"encoder_self": [')
    assert not is_of_another_plan(tmp_path, new), "nothing is known"
    (tmp_path / "plan.json").write_text("3")
    assert is_of_another_plan(tmp_path, new)


@pytest.mark.parametrize(
    "output",
    [
        "BLEU4 = nan, 68.9/42.6",
        "| Loss (base 2): nan, Perplexity: inf",
        "x | test | valid on 'test' subset | loss nan | ppl inf | wps 0",
        "Translated 1 sentences (7 tokens) in 0.1s (inf sentences/s, 6918.67 tokens/s)",
    ],
)
def test_scores_that_are_no_numbers(output: str) -> None:
    for parse in (parse_scores, parse_decoding_seconds):
        with pytest.raises(NasAttnError):
            parse(output)


def test_odd_digits_are_no_traceback() -> None:
    assert parse_scores("BLEU4 = 34.41.7, 68.9") == {"bleu": 34.41}
    with pytest.raises(NasAttnError):
        parse_scores("| valid on 'test' subset | loss 5.9.2 | ppl 1.2.3")


def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    with log.open("wb") as file:
        file.truncate(400_000_000)  # sparse
        file.seek(0, os.SEEK_END)
        file.write(b"\nValueError: no such thing\n" + GENERATED.encode())
    tracemalloc.start()
    began = time.monotonic()
    text = end_of_log(log)
    seconds, (_, peak) = time.monotonic() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert text == "ValueError: no such thing\n" + GENERATED
    assert parse_scores(text) == {"bleu": 12.08}
    assert peak < 20 * TAIL_BYTES and seconds < 2
    assert end_of_log(log, after=log.stat().st_size - 5) == GENERATED[-5:]
    assert end_of_log(tmp_path / "absent") == "(no log)"
    log.write_bytes(b"x" * (3 * TAIL_BYTES))
    assert end_of_log(log) == "x" * TAIL_BYTES, "a line without end"
    assert len(last_lines(end_of_log(log))) < 5000


def test_logs_of_a_trial_are_read_from_their_end(tmp_path: Path) -> None:
    """A long log of a failure, of a score and of seconds."""
    job = make_job(
        tmp_path,
        ([1.0], "end"),
        evaluation=("fairseq-generate", CHECKPOINT, GENERATED),
        measure=("fairseq-generate", CHECKPOINT, GENERATED),
        measure_runs=1,
    )
    (tmp_path / "seed-1").mkdir()
    for name in ("train.log", "test.log", "measure.log"):
        with (tmp_path / "seed-1" / name).open("wb") as file:
            file.truncate(300_000_000)
    tracemalloc.start()
    result = finish(TrialRun(job))
    failed = finish(TrialRun(make_job(tmp_path / "other", ([1.0], "fail"))))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.tests == ({"bleu": 12.08},)
    assert result.measured["decoding_seconds"] == pytest.approx(1 / 530.87)
    assert failed.error is not None and "no such thing" in failed.error
    assert peak < 40 * TAIL_BYTES


def test_a_checkpoint_that_cannot_be_read_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of a shared folder says nothing about the file."""
    folder = tmp_path / "seed-1" / "checkpoints"
    folder.mkdir(parents=True)
    last = folder / "checkpoint_last.pt"
    torch.save({"weights": torch.ones(100)}, last)

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZipFile", fail)
        result = finish(TrialRun(make_job(tmp_path, ([3.0], "end"))))
    assert result.failure is FailureKind.UNREADABLE and result.failure.can_retry
    assert checkpoint_is_whole(last)


@pytest.mark.parametrize("place", [30, 64, 200, 400, -60, -30, -10])
def test_damaged_checkpoints(place: int, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"weights": torch.ones(100)}, path)
    assert fault_of_start(path) is None
    data = bytearray(path.read_bytes())
    data[place : place + 9 if place > 0 else None] = b"\xff" * len(data[place:][:9])
    path.write_bytes(data)
    assert checkpoint_is_whole(path) in (True, False), "never an error"


def test_what_trials_start_from(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert fault_of_start(path) == "is gone"
    path.mkdir()
    assert fault_of_start(path) == "is no file"
    path.rmdir()
    for content in (b"", b"nonsense", b"PK\3\4"):
        path.write_bytes(content)
        assert fault_of_start(path) == "is damaged"
    torch.save({"weights": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert fault_of_start(path) is None, "as torch wrote them of old"


def test_errors_of_our_own_are_seen_and_end_one_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("a mistake")

    monkeypatch.setattr(TrialReports, "news", fail)
    result = finish(TrialRun(make_job(tmp_path, ([3.0], "hang"))))
    assert result.failure is FailureKind.INTERNAL
    assert result.error is not None
    assert "an error of nas-attn itself, KeyError: 'a mistake'" in result.error
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "Traceback" in caplog.text
    assert 'raise KeyError("a mistake")' in (tmp_path / "error.log").read_text()


def test_kinds_of_errors() -> None:
    try:
        raise TrialFileError("it cannot be read") from PermissionError(errno.EACCES, "no")
    except TrialFileError as error:
        assert failure_of_error(error, "here").kind is FailureKind.UNREADABLE
    assert failure_of_error(TrialFileError("odd"), "here").kind is FailureKind.DAMAGED
    assert failure_of_error(NasAttnError("no"), "here").kind is FailureKind.TRAINING
    assert failure_of_error(OSError(errno.ENOSPC, "no"), "here").kind is FailureKind.DISK_FULL
