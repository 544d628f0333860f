"""A search on a Ray cluster that loses a node, or its head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from nas_attn.engine.config import ExecutionConfig, ResourcesConfig
from nas_attn.engine.trial_record import TrialRecord, front
from nas_attn.errors import SearchError
from nas_attn.fairseq_tools.data import PreparedData
from tests.helpers.cli import run
from tests.helpers.ray_nodes import (
    RayNodes,
    log_of,
    start_driver,
    trains_on,
    trials_of,
    wait_for,
)
from tests.helpers.studies import write

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray leaves sockets and files open
]

TRIALS = 6
CHANGES = {
    "space/decide": "site",
    "search/trials": TRIALS,
    "search/sampler": "stratified_random",
    "execution": {"executor": "ray", "workers": 2},
    "replay": {"seconds": 5.0},
}


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[RayNodes]:
    cluster = RayNodes(tmp_path / "nodes", head_cpus=1)
    yield cluster
    cluster.close()


def results(trials: list[TrialRecord]) -> list[Any]:
    return [(trial.plan, trial.losses, trial.costs) for trial in trials]


def undisturbed(study: Path, runs: Path) -> list[TrialRecord]:
    """The trials of the same search in virtual time."""
    run("search", str(study), "--runs", str(runs), "--executor", "simulated")
    return trials_of(study, runs)


def test_a_node_is_killed(nodes: RayNodes, tiny_translation: PreparedData, tmp_path: Path) -> None:
    study = write(tmp_path, tiny_translation.folder, CHANGES)
    log, runs = log_of(study), tmp_path / "runs"
    node = nodes.add("node")
    driver = start_driver(study, runs, "--address", nodes.address)
    struck: list[Path] = []

    def has_validated_there() -> bool:
        for report in runs.glob("*/trials/*/seed-1/report.jsonl"):
            count = len(report.read_text().splitlines())
            if 3 <= count <= 6 and trains_on(node, report.parent):
                struck.append(report.parent)
        return bool(struck)

    wait_for(has_validated_there, driver, log)
    nodes.kill(node)
    wait_for(lambda: "1 trials at a time now" in log.read_text(), driver, log)
    nodes.add("another")
    assert driver.wait(120) == 0, log.read_text()

    trials = trials_of(study, runs)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * TRIALS
    (number,) = [trial.number for trial in trials if trial.attempts]
    assert [a["failure"] for a in trials[number].attempts] == ["worker_lost"]
    assert str(struck[0]).startswith(trials[number].folder or "none")
    assert (struck[0] / "checkpoints" / "attempts").read_text().strip() == "2"
    lines = Counter((struck[0] / "report.jsonl").read_text().splitlines())
    assert lines.total() - len(lines) <= 1, "it went on from its last checkpoint"
    assert "2 trials at a time now" in log.read_text(), "the new node is used"
    whole = undisturbed(study, tmp_path / "whole")
    assert results(trials) == results(whole)
    assert [t.number for t in front(trials)] == [t.number for t in front(whole)]


@pytest.mark.long
def test_the_head_is_killed(
    nodes: RayNodes, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    study = write(tmp_path, tiny_translation.folder, CHANGES | {"search/trials": 4})
    log, runs = log_of(study), tmp_path / "runs"
    driver = start_driver(study, runs, "--address", nodes.address)
    wait_for(lambda: "trial 0: " in log.read_text(), driver, log)
    nodes.kill_head()
    assert driver.wait(60) != 0
    assert f"the Ray cluster at {nodes.address} does not answer" in log.read_text()
    nodes.close()

    again = RayNodes(tmp_path / "again", head_cpus=2)
    try:
        driver = start_driver(study, runs, "--address", again.address)
        assert driver.wait(120) == 0, log.read_text()
    finally:
        again.close()
    trials = trials_of(study, runs)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert log.read_text().count("trial 0: ") == 1, "what is complete does not run again"
    assert results(trials) == results(undisturbed(study, tmp_path / "whole"))


def test_a_node_without_the_data_is_refused(nodes: RayNodes, tmp_path: Path) -> None:
    from nas_attn.engine.executors.ray_tune.executor import RayExecutor

    missing = tmp_path / "none"
    with pytest.raises(SearchError, match=rf"no data folder {missing} on the Ray node.*transfer"):
        RayExecutor(
            ExecutionConfig(executor="ray"),
            ResourcesConfig(),
            nodes.address,
            data=missing,
            runs=tmp_path,
        )


@pytest.mark.parametrize(
    ("address", "message"),
    [("ray://127.0.0.1:9", "Ray's client.*--address auto"), ("127.0.0.1:9", "nothing answers")],
)
def test_addresses_that_do_not_do_are_refused_at_once(
    address: str, message: str, tmp_path: Path
) -> None:
    from nas_attn.engine.executors.ray_tune.executor import RayExecutor

    config = ExecutionConfig(executor="ray")
    with pytest.raises(SearchError, match=message):
        RayExecutor(config, ResourcesConfig(), address, data=tmp_path, runs=tmp_path)
