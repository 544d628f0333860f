"""Two drivers, as processes, on one study: they share its trials, also when one is killed."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from nas_attn.engine.objectives import Objectives
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.fairseq_tools.data import PreparedData
from tests.helpers.cli import COMMAND, run
from tests.helpers.servers import GrpcProxy, Postgres, close
from tests.helpers.studies import write

OBJECTIVES = Objectives(metric="nll_loss", maximise=False, costs=("total",), limits={})
TRIALS = 20
SECONDS = 120.0
"""What a search gets on a loaded machine."""


@dataclass
class Search:
    """A study, and the drivers that work on it."""

    study: Path
    runs: Path
    storage: BaseStorage
    drivers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, drivers: int) -> None:
        command = [*COMMAND, "search", str(self.study), "--runs", str(self.runs)]
        with self.log.open("ab") as log:
            for _ in range(drivers):
                driver = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
                self.drivers.append(driver)

    @property
    def log(self) -> Path:
        """What all drivers print."""
        return self.study.with_suffix(".log")

    def trials(self) -> list[TrialRecord]:
        """As they are on record; none before there is one."""
        return TrialStore("small", self.storage, OBJECTIVES, create=True).trials()

    def driver_of(self, trial: TrialRecord) -> int:
        """The process that began a trial."""
        assert trial.driver is not None
        return int(trial.driver.split("-")[-2])

    def wait_for(self, happened: Callable[[list[TrialRecord]], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not happened(self.trials()):
            assert time.monotonic() < deadline
            assert all(driver.poll() is None for driver in self.drivers), self.log.read_text()
            time.sleep(0.3)

    def end(self) -> list[TrialRecord]:
        """Wait for the drivers, and see that all is as it must be; returns the trials."""
        for driver in self.drivers:
            assert driver.wait(SECONDS) == 0, self.log.read_text()
        trials = self.trials()
        counted = [trial for trial in trials if trial.uses_budget]
        assert [trial.state for trial in counted] == [TrialState.COMPLETE] * TRIALS
        assert len({trial.plan for trial in counted}) == TRIALS
        assert all(trial.state.is_finished() for trial in trials)
        run("proposals", str(self.study), "--runs", str(self.runs), "--check")
        return counted


@pytest.fixture
def proxy(
    postgres: Postgres, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[GrpcProxy]:
    database = postgres.create_database(f"proxied_{time.monotonic_ns()}")
    server = GrpcProxy(database, tmp_path / "proxy.log")
    yield server
    server.kill()


@pytest.fixture
def search(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_translation: PreparedData
) -> Iterator[Search]:
    url = None
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        url = server.create_database(f"shared_{time.monotonic_ns()}")
    elif request.param == "grpc":
        url = request.getfixturevalue("proxy").url
    changes: dict[str, Any] = {
        "space/schemes/collaborative": {"shared_dim": [2, 4, 8, 16], "content_bias": [False, True]},
        "search": {"trials": TRIALS, "startup_trials": 5},
        "execution": {"workers": 1, "storage": url},
        "replay": {"seconds": 0.5},
    }
    study, runs = write(tmp_path, tiny_translation.folder, changes), tmp_path / "runs"
    search = Search(study, runs, open_storage(url, runs / "small"))
    yield search
    for driver in search.drivers:
        driver.kill()
        driver.wait()
    close(search.storage)


def attempts(trial: TrialRecord) -> int:
    """How often a training was started."""
    assert trial.folder is not None
    return int((Path(trial.folder) / "seed-1" / "checkpoints" / "attempts").read_text())


def validations(trial: TrialRecord) -> list[int]:
    assert trial.folder is not None
    report = Path(trial.folder) / "seed-1" / "report.jsonl"
    return [json.loads(line)["num_updates"] for line in report.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("search", ["journal", "postgres", "grpc"], indirect=True)
def test_two_drivers_share_a_study(search: Search) -> None:
    search.start(drivers=2)
    trials = search.end()
    shares = Counter(search.driver_of(trial) for trial in trials)
    assert set(shares) == {driver.pid for driver in search.drivers}
    assert min(shares.values()) >= 3, shares
    assert [attempts(trial) for trial in trials] == [1] * TRIALS


@pytest.mark.slow
@pytest.mark.parametrize(
    "search",
    ["journal", *(pytest.param(name, marks=pytest.mark.long) for name in ("postgres", "grpc"))],
    indirect=True,
)
def test_a_driver_takes_over_from_one_that_was_killed(search: Search) -> None:
    search.start(drivers=2)
    victim = search.drivers[0]

    def is_amid(trials: list[TrialRecord]) -> bool:
        mine = [trial for trial in trials if search.driver_of(trial) == victim.pid]
        running = [trial for trial in mine if not trial.state.is_finished()]
        return len(mine) > 2 and any(0 < len(trial.curve) < 9 for trial in running)

    search.wait_for(is_amid)
    victim.kill()
    victim.wait()
    left = [
        trial.number
        for trial in search.trials()
        if trial.uses_budget
        and not trial.state.is_finished()
        and search.driver_of(trial) == victim.pid
    ]
    search.drivers.remove(victim)
    trials = search.end()
    restarted = [trial.number for trial in trials if attempts(trial) > 1]
    assert restarted == left
    for trial in trials:
        updates = validations(trial)
        assert sorted(set(updates)) == [100 * number for number in range(1, 10)]
        assert len(updates) <= 9 + (trial.number in left), "more than the one that a kill fell into"


@pytest.mark.slow
@pytest.mark.parametrize("search", ["grpc"], indirect=True)
def test_a_proxy_that_is_started_again_is_waited_for(search: Search, proxy: GrpcProxy) -> None:
    search.start(drivers=2)
    search.wait_for(lambda trials: sum(trial.is_trained for trial in trials) > 4)
    proxy.kill()
    time.sleep(2)
    proxy.start()
    assert [attempts(trial) for trial in search.end()] == [1] * TRIALS
