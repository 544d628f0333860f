"""What is read of a log: scores, plans, seconds, its end."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import pytest

from nas_attn.errors import NasAttnError
from nas_attn.trials import runner
from nas_attn.trials.failures import last_lines
from nas_attn.trials.job import CHECKPOINT
from nas_attn.trials.runner import TrialRun
from nas_attn.trials.scores import TAIL_BYTES, end_of_log, parse_decoding_seconds, parse_scores
from tests.helpers.trials import GENERATED, MODELLED, finish, make_job, stand_in

VALIDATED = """\
2026-11-25 09:42:03 | INFO | fairseq.tasks.fairseq_task | creating new batches for epoch 1
2026-11-25 09:42:03 | INFO | test | valid on 'test' subset | loss 5.952 | ppl 61.9 | wps 0 | \
wpb 483 | bsz 8
"""


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "executable_form", stand_in)


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
