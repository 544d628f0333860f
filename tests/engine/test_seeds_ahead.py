"""Seeds of one trial side by side, where nothing else could begin."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nas_attn.engine.config import ExecutionConfig, ResourcesConfig
from nas_attn.engine.executors import local
from nas_attn.engine.executors.local import LocalExecutor
from nas_attn.engine.loop import SearchLoop
from nas_attn.plan import AttentionPlan
from nas_attn.trials import runner
from nas_attn.trials.job import SeedRun, StartFolders, TrialJob
from tests.helpers.fakes import WARM, make_loop, make_sizer

SEEDS = (1, 2, 3)
POLLS = 4
"""Of a training; the executor polls all that run in turn."""


@dataclass(eq=False)
class Training:
    """A process that is none: it ends after some polls, and reports a loss."""

    trainings: Trainings
    seed: int
    report: Path
    lock: int
    code: int
    polls: int = 0
    pid: int = 0

    def poll(self) -> int | None:
        self.polls += 1
        if self in self.trainings.running and self.polls < POLLS:
            return None
        if self in self.trainings.running:
            self.end()
            line = {"num_updates": 7, "metrics": {"loss": float(self.seed)}}
            line["parameters"] = {"total": int(self.report.parents[1].name)}
            self.report.write_text(json.dumps(line) + "\n")
        return self.code

    def wait(self, timeout: float) -> int | None:
        return self.code

    def signal(self, number: int) -> None:
        if self in self.trainings.running:
            self.trainings.stopped.append(self.seed)
            self.end()

    def end(self) -> None:
        self.trainings.running.remove(self)
        os.close(self.lock)


@dataclass
class Trainings:
    """Launches trainings that are none, and keeps which of them are beside one another.

    Args:
        failing: Seeds whose first training fails.
    """

    failing: list[int] = field(default_factory=list)
    running: list[Training] = field(default_factory=list)
    beside: list[list[tuple[str, int]]] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        keep_open: int,
        **_: bool,
    ) -> Training:
        log.touch()
        seed, report = int(command[0]), Path(environment["NAS_ATTN_REPORT"])
        code = int(seed in self.failing)
        if code:
            self.failing.remove(seed)
        self.begun.append(seed)
        self.running.append(Training(self, seed, report, os.dup(keep_open), code))
        self.beside.append([(t.report.parents[1].name, t.seed) for t in self.running])
        return self.running[-1]

    def close(self) -> None:
        pass

    @property
    def most(self) -> int:
        return max(map(len, self.beside))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    found = Trainings()
    monkeypatch.setattr(runner, "executable_form", list)
    monkeypatch.setattr(runner, "SAY_SECONDS", 0.0)
    monkeypatch.setattr(local, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(local, "ColdLauncher", lambda: found)
    return found


def run(folder: Path, workers: int, **config: Any) -> SearchLoop:
    loop = make_loop(folder, **config)

    def build(number: int, plan: AttentionPlan, _: StartFolders) -> TrialJob:
        total = make_sizer().size(plan).total
        trial = folder / str(number) / str(total)
        runs = [SeedRun(seed=s, folder=str(trial / f"{s}"), command=(str(s),)) for s in SEEDS]
        return TrialJob(
            number=number, folder=str(trial), metric="loss", parameters=total, runs=tuple(runs)
        )

    loop.build_job = build
    LocalExecutor(ExecutionConfig(fork_server=False, workers=workers), ResourcesConfig()).run(loop)
    return loop


@pytest.mark.parametrize(("workers", "most"), [(1, 1), (2, 2), (3, 3), (5, 3)])
def test_a_baseline_takes_the_places_that_wait_for_it(
    trainings: Trainings, tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int, most: int
) -> None:
    loop = run(tmp_path, workers, trials=1, **WARM)
    assert loop.outcome().finished == 1
    (trial,) = loop.store.trials()
    assert trial.losses == SEEDS and trial.updates == 7 * len(SEEDS)
    assert trainings.most == most
    assert sorted(trainings.begun) == [*SEEDS] and not trainings.running
    assert "waits for its folder" not in caplog.text


def test_trials_come_before_later_seeds(trainings: Trainings, tmp_path: Path) -> None:
    loop = run(tmp_path, 2, trials=3)
    assert loop.outcome().finished == 3
    assert trainings.begun == [1, 1, 2, 2, 3, 3, 1, 3, 2] and trainings.most == 2
    assert all(len({plan for plan, _ in beside}) == 2 for beside in trainings.beside[1:6])


def test_what_may_be_stopped_has_its_first_seed_alone(trainings: Trainings, tmp_path: Path) -> None:
    loop = run(tmp_path, 3, trials=1, stopping={"rule": "halving"})
    assert loop.outcome().finished == 1
    assert [len(beside) for beside in trainings.beside] == [1, 1, 2]


def test_what_fails_ahead_is_done_again(trainings: Trainings, tmp_path: Path) -> None:
    trainings.failing = [3]
    loop = run(tmp_path, 2, trials=1)
    assert loop.outcome().finished == 1
    assert loop.store.trials()[0].losses == SEEDS
    assert trainings.begun == [1, 3, 2, 3]


def test_what_is_ahead_of_a_trial_ends_with_it(trainings: Trainings, tmp_path: Path) -> None:
    trainings.failing = [1] * 3
    loop = run(tmp_path, 3, trials=1, retries=0)
    assert loop.store.trials()[0].failure is not None
    assert {2, 3} & {*trainings.stopped} and not trainings.running


def test_an_interrupted_search_leaves_no_training(
    trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        if len(trainings.running) == len(SEEDS):
            raise KeyboardInterrupt

    monkeypatch.setattr(local.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 3, trials=1)
    assert sorted(trainings.stopped) == [*SEEDS] and not trainings.running
