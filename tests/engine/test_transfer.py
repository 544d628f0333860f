"""Data and results between nodes that share no folder."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from optuna.trial import TrialState

from nas_attn.engine.executors.transfer import (
    DatasetArchive,
    FileSync,
    NodeWorkspace,
    _keep_further,
    _unpack,
)
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.study.loading import load_study
from nas_attn.trials.job import SeedRun, TrialJob
from nas_attn.trials.layout import checkpoint_is_whole
from tests.helpers.ray_nodes import RayNodes, log_of, start_driver, wait_for
from tests.helpers.studies import write

CHANGES = {
    "training/arguments/max-epoch": 8,
    # Loaders share batches through sockets in the temporary folder, whose path may be too long.
    "training/arguments/num-workers": 0,
    "search/trials": 2,
    "search/sampler": "stratified_random",
}
ON_RAY = {"execution": {"executor": "ray", "transfer": "object_store", "workers": 1}}


def report(validations: int) -> str:
    lines = [{"num_updates": update, "metrics": {}} for update in range(validations)]
    return "".join(json.dumps(line) + "\n" for line in lines)


def make_trial(folder: Path, validations: int) -> None:
    checkpoints = folder / "seed-1" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (folder / "seed-1" / "report.jsonl").write_text(report(validations))
    torch.save({"validations": validations}, checkpoints / "checkpoint_last.pt")


def test_data_lie_elsewhere_on_a_node_and_are_unpacked_once(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "train.bin").write_bytes(bytes(range(256)))
    archive = DatasetArchive.pack(tmp_path / "data")
    there = archive.unpack(tmp_path / "node")
    assert (there / "deep" / "train.bin").read_bytes() == bytes(range(256))
    before = (there / "deep" / "train.bin").stat().st_ino
    assert archive.unpack(tmp_path / "node") == there
    (tmp_path / "theirs").symlink_to(tmp_path / "node")
    with pytest.raises(NasAttnError, match="cannot be trusted with data"):
        archive.unpack(tmp_path / "theirs")
    assert (there / "deep" / "train.bin").stat().st_ino == before


def test_a_report_comes_first_and_a_checkpoint_that_is_begun_stays(tmp_path: Path) -> None:
    trial = tmp_path / "trials" / "00000"
    make_trial(trial, 2)
    run = trial / "seed-1"
    whole = (run / "checkpoints" / "checkpoint_last.pt").read_bytes()
    (run / "checkpoints" / "checkpoint_best.pt").write_bytes(whole[: len(whole) // 2])
    for name in ("finished.json", "finished.json.partial", "training.lock"):
        (run / name).write_text("{}")
    content = FileSync(tmp_path).give(str(trial))
    assert content is not None
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        names = [Path(name).name for name in archive.getnames()]
    assert names == ["report.jsonl", "checkpoint_last.pt", "finished.json"]
    FileSync(tmp_path).take(str(tmp_path / "copy"), content)
    assert checkpoint_is_whole(tmp_path / "copy" / "seed-1" / "checkpoints" / "checkpoint_last.pt")


def test_of_a_long_log_the_end_travels(tmp_path: Path) -> None:
    trial = tmp_path / "trials" / "00000"
    make_trial(trial, 1)
    with (trial / "seed-1" / "train.log").open("wb") as log:
        log.truncate(300_000_000)
        log.seek(0, os.SEEK_END)
        log.write(b"the end")
    content = FileSync(tmp_path).give(str(trial))
    assert content is not None and len(content) < 20_000_000
    FileSync(tmp_path).take(str(tmp_path / "copy"), content)
    sent = (tmp_path / "copy" / "seed-1" / "train.log").read_bytes()
    assert len(sent) == 16 * 1024 * 1024 and sent.endswith(b"the end")


def test_nothing_is_written_or_read_outside_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    sync = FileSync(tmp_path / "runs")
    assert sync.give(str(tmp_path / "secret")) is None
    with pytest.raises(ValueError, match="not in the run folder"):
        sync.take(str(tmp_path / "secret"), b"")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../escaped"))
    with pytest.raises(ValueError, match=r"\.\./escaped is not in"):
        sync.take(str(tmp_path / "runs" / "trial"), buffer.getvalue())
    assert not (tmp_path / "runs" / "escaped").exists()


def test_what_another_trial_made_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own part, calling an actor, is stood in for."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "get", lambda value: value)
    runs, asked = tmp_path / "runs", []

    class Direct:
        """Calls a sync at once where Ray would do it elsewhere."""

        def __getattr__(self, name: str) -> Any:
            def remote(*arguments: Any) -> Any:
                asked.append(name)
                return getattr(FileSync(runs), name)(*arguments)

            return SimpleNamespace(remote=remote)

    needed = runs / "trials" / "00000" / "start" / "checkpoint_best.pt"
    needed.parent.mkdir(parents=True)
    needed.write_bytes(b"weights")
    (tmp_path / "data").mkdir()
    archive = DatasetArchive.pack(tmp_path / "data")
    folder = runs / "trials" / "00001"
    run = SeedRun(
        seed=1,
        folder=str(folder / "seed-1"),
        command=("fairseq-train", str(tmp_path / "data")),
        start=("nas-attn", "convert", str(needed), "--out", str(folder / "seed-1" / "x.pt")),
    )
    job = TrialJob(
        number=1,
        folder=str(folder),
        metric="loss",
        parameters=1,
        runs=(run,),
        needs=(str(needed),),
    )
    for _ in range(2):
        files = NodeWorkspace(archive, Direct(), tmp_path / "node")
        start = files.localise(job).runs[0].start
        assert Path(start[2]).read_bytes() == b"weights"
        assert all(Path(part).is_relative_to(tmp_path / "node") for part in (start[2], start[4]))
    assert asked.count("read") == 1
    needed.write_bytes(b"of another search in the same folder")
    start = NodeWorkspace(archive, Direct(), tmp_path / "node").localise(job).runs[0].start
    assert Path(start[2]).read_bytes() == needed.read_bytes()
    with pytest.raises(ValueError, match="not in the run folder"):
        FileSync(runs).read(str(tmp_path / "data"))


@pytest.mark.parametrize(("here", "known", "kept"), [(3, 2, 3), (2, 3, 3), (0, 2, 2)])
def test_a_node_goes_on_from_what_is_further(
    here: int, known: int, kept: int, tmp_path: Path
) -> None:
    node, trial = tmp_path / "node" / "trial", tmp_path / "runs" / "trial"
    if here:
        make_trial(node, here)
    make_trial(trial, known)
    content = FileSync(tmp_path / "runs").give(str(trial))
    assert content is not None
    _keep_further(node, content)
    checkpoint = node / "seed-1" / "checkpoints" / "checkpoint_last.pt"
    assert torch.load(checkpoint)["validations"] == kept
    assert [path.name for path in node.parent.iterdir()] == ["trial"]


def test_what_is_replaced_was_whole_all_the_time(tmp_path: Path) -> None:
    make_trial(tmp_path / "old", 1)
    make_trial(tmp_path / "new", 2)
    content = FileSync(tmp_path).give(str(tmp_path / "new"))
    assert content is not None
    checkpoint = tmp_path / "old" / "seed-1" / "checkpoints" / "checkpoint_last.pt"
    with checkpoint.open("rb") as reader:
        _unpack(content, tmp_path / "old")
        assert torch.load(reader)["validations"] == 1
    assert torch.load(checkpoint)["validations"] == 2


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[RayNodes]:
    pytest.importorskip("ray")
    cluster = RayNodes(tmp_path / "nodes", head_cpus=0)
    yield cluster
    cluster.close()


def trials_of(study: Path, runs: Path) -> list[TrialRecord]:
    loaded = load_study(str(study), runs=runs)
    store = TrialStore(loaded.config.name, open_storage(None, loaded.folder), loaded.objectives)
    return store.trials()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Ray leaves sockets and files open
def test_another_node_goes_on_where_a_killed_one_was(
    nodes: RayNodes, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    whole = write(tmp_path, tiny_translation.folder, CHANGES).rename(tmp_path / "whole.yaml")
    study, runs = write(tmp_path, tiny_translation.folder, CHANGES | ON_RAY), tmp_path / "runs"
    first = nodes.add("first")
    driver, log = start_driver(study, runs, "--address", nodes.address), log_of(study)
    run = runs / "small" / "trials" / "00000" / "seed-1"
    last = run / "checkpoints" / "checkpoint_last.pt"

    def has_sent_checkpoints() -> bool:
        return last.is_file() and len((run / "report.jsonl").read_text().splitlines()) >= 3

    wait_for(has_sent_checkpoints, driver, log)
    nodes.kill(first)
    assert checkpoint_is_whole(last)
    nodes.add("second")
    assert driver.wait(240) == 0, log.read_text()

    trials = trials_of(study, runs)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert [len(trial.attempts) for trial in trials] == [1, 0]
    printed = (run / "train.log").read_text()
    places = [f"{tmp_path}/nodes/{name}/" for name in ("first", "second")]
    assert [place in printed for place in places] == [True, True], "both have trained it"
    assert str(tiny_translation.folder) not in printed, "with data that have travelled"
    assert str(runs) not in printed, "into a folder of the node"
    loaded = re.search(
        rf"Loaded checkpoint {places[1]}\S*checkpoint_last.pt \(epoch (\d+)", printed
    )
    assert loaded is not None and int(loaded[1]) >= 2
    for trial in trials:
        assert trial.folder is not None and trial.folder.startswith(str(runs))
        best = Path(trial.folder) / "seed-1" / "checkpoints" / "checkpoint_best.pt"
        assert checkpoint_is_whole(best), "results are in the run folder"
    left = list((tmp_path / "nodes" / "second").glob("nas-attn-*/trials/*"))
    assert left == [], "a node keeps nothing of a trial that is over"

    undisturbed = start_driver(whole, tmp_path / "whole")
    assert undisturbed.wait(120) == 0, log_of(whole).read_text()
    expected = trials_of(whole, tmp_path / "whole")
    assert [(t.plan, t.losses) for t in trials] == [(t.plan, t.losses) for t in expected]
