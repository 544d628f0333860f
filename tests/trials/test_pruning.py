"""Trainings that vote: what was voted out is cut out after them, by a process of its own."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from nas_attn.errors import NasAttnError
from nas_attn.trials import runner
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.layout import read_state
from nas_attn.trials.runner import TrialRun
from nas_attn.trials.scores import parse_plan
from nas_attn.trials.steps import StepKind
from tests.helpers import trials
from tests.helpers.trials import PRUNED_PLAN, finish, make_job, stand_in

VOTED = [["training", 0.5], ["voting", 0.4], ["settled", 2.0]]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "executable_form", stand_in)


def test_what_was_better_before_pruning_does_not_count(tmp_path: Path) -> None:
    job = make_job(tmp_path, ([*VOTED, ["settled", 1.0]], "end"), (VOTED, "end"))
    result = finish(TrialRun(job))
    assert result.losses == (1.0, 2.0)
    assert result.plans == (PRUNED_PLAN.to_json(), PRUNED_PLAN.to_json())
    assert finish(TrialRun(job)).plans == result.plans, "also when it is looked at again"
    for seed in ("seed-1", "seed-2"):
        assert (tmp_path / seed / "checkpoints" / "checkpoint_pruned.pt").is_file()
        assert (tmp_path / seed / "prune.log").read_text().startswith("plan: ")


def test_a_training_that_ends_before_its_vote(tmp_path: Path) -> None:
    result = finish(TrialRun(make_job(tmp_path, (VOTED[:2], "end"))))
    assert result.error is not None
    assert "ended before the vote was over (voting): vote earlier or train longer" in result.error


def test_a_training_without_a_vote_is_not_pruned(tmp_path: Path) -> None:
    result = finish(TrialRun(make_job(tmp_path, ([1.0], "end"))))
    assert result.plans == ()
    assert not (tmp_path / "seed-1" / "prune.log").exists()


def test_polls_return_while_a_checkpoint_is_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pruning loads and writes checkpoints, which may take minutes."""
    go = tmp_path / "go"
    waiting = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
    monkeypatch.setattr(trials, "CUTTING", waiting + trials.CUTTING)
    trial = TrialRun(make_job(tmp_path, (VOTED, "end")))
    deadline = time.monotonic() + 20
    while trial._activity is None or trial._activity.step.kind is not StepKind.PRUNE:
        assert time.monotonic() < deadline
        trial.poll()
        time.sleep(0.02)
    began = time.monotonic()
    for _ in range(50):
        assert trial.poll() == []
    assert time.monotonic() - began < 2
    assert trial.result is None
    go.touch()
    assert finish(trial).plans == (PRUNED_PLAN.to_json(),)


def test_an_interrupted_pruning_is_done_again_and_the_training_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have written its checkpoint, of which nothing is written down."""
    job = make_job(tmp_path, (VOTED, "end"))
    with monkeypatch.context() as patch:
        patch.setattr(trials, "CUTTING", trials.CUTTING + "import time; time.sleep(60)")
        trial = TrialRun(job)
        pruned = tmp_path / "seed-1" / "checkpoints" / "checkpoint_pruned.pt"
        deadline = time.monotonic() + 20
        while not pruned.is_file():
            assert time.monotonic() < deadline
            trial.poll()
            time.sleep(0.02)
        trial.stop()
    state = read_state(tmp_path / "seed-1")
    assert state["trained"] and not state["finished"] and "plan" not in state
    log = (tmp_path / "seed-1" / "train.log").read_text()
    result = finish(TrialRun(job))
    assert result.plans == (PRUNED_PLAN.to_json(),)
    assert (tmp_path / "seed-1" / "train.log").read_text() == log
    assert result.seconds == pytest.approx(state["seconds"]), "only training counts"


def test_states_of_earlier_versions(tmp_path: Path) -> None:
    """A training that had ended is started again, as it was, to end at once and be pruned."""
    job = make_job(tmp_path, (VOTED, "end"))
    (tmp_path / "seed-1").mkdir()
    path = tmp_path / "seed-1" / "finished.json"
    path.write_text('{"finished": false, "seconds": 5.0}')
    result = finish(TrialRun(job))
    assert result.plans == (PRUNED_PLAN.to_json(),) and result.seconds > 5
    old = {"finished": True, "seconds": 5.0, "plan": PRUNED_PLAN.to_json()}
    path.write_text(json.dumps(old))
    (tmp_path / "seed-1" / "prune.log").unlink()
    assert finish(TrialRun(job)).plans == (PRUNED_PLAN.to_json(),)
    assert not (tmp_path / "seed-1" / "prune.log").exists()


@pytest.mark.parametrize(
    ("ending", "kind", "error"),
    [
        ("sys.exit('best.pt is no checkpoint that can be read')", "training_error", "is no check"),
        ("sys.exit('OSError: No space left on device')", "disk_full", "No space left on device"),
        ("os.kill(os.getpid(), 9)", "killed", r"nas-attn \(seed 1\) was killed by SIGKILL"),
        ("print('written: x')", "training_error", "printed no plan:\nwritten: x"),
        ("print('plan: {}}')", "training_error", "plan is no JSON|plan"),
    ],
)
def test_failures_of_pruning_end_the_trial_in_words(
    ending: str, kind: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, (VOTED, "end"))
    with monkeypatch.context() as patch:
        patch.setattr(trials, "CUTTING", f"import os, sys\n{ending}")
        result = finish(TrialRun(job))
    assert result.failure == FailureKind(kind)
    assert result.error is not None
    assert re.search(error, result.error)
    assert finish(TrialRun(job)).error is None, "the next attempt prunes what is there"


def test_the_plan_that_is_left() -> None:
    output = f"parameters 5 3\nplan: {PRUNED_PLAN.dumps()}\nwritten: small.pt\n"
    assert parse_plan(output) == PRUNED_PLAN
    odd: list[Any] = ["", "plan: {", 'plan: {"encoder_self": 3}', "no plan: {}"]
    for text in odd:
        with pytest.raises(NasAttnError):
            parse_plan(text)
