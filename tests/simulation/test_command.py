"""Replayed trainings: the command, what a process of its own does with it, and its faults."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nas_attn.curves import Curve, Point, write_curves
from nas_attn.errors import ConfigError, NasAttnError
from nas_attn.simulation.command import parse_replay_command, replay_command
from nas_attn.simulation.synthetic import (
    FaultName,
    ReplayConfig,
    curve_of,
    drawn_fault,
)
from nas_attn.trials.layout import checkpoint_is_whole
from tests.helpers.curves import MIXED, MULTI_HEAD, PARAMETERS


def arguments(config: ReplayConfig, folder: Path, plan_text: str = MULTI_HEAD) -> list[str]:
    command = replay_command(config, plan_text, PARAMETERS, 1, folder / "checkpoints")
    return [sys.executable, "-m", "nas_attn.simulation.command", *command[1:]]


def start(config: ReplayConfig, folder: Path, plan_text: str = MULTI_HEAD) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments(config, folder, plan_text),
        env={**os.environ, "NAS_ATTN_REPORT": str(folder / "report.jsonl")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(config: ReplayConfig, folder: Path, plan_text: str = MULTI_HEAD) -> tuple[int, str]:
    process = start(config, folder, plan_text)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def report(folder: Path) -> list[dict[str, Any]]:
    path = folder / "report.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def reported(folder: Path) -> list[tuple[int, float]]:
    return [(line["num_updates"], line["metrics"]["loss"]) for line in report(folder)]


def expected(config: ReplayConfig, plan_text: str = MULTI_HEAD) -> list[tuple[int, float]]:
    curve = curve_of(config, plan_text, PARAMETERS, 1)
    return [(point.num_updates, point.loss) for point in curve.points]


def validations_in(checkpoint: Path) -> int:
    with zipfile.ZipFile(checkpoint) as archive:
        return int(json.loads(archive.read("replay.json"))["validations"])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestCommand:
    def test_parse_is_the_inverse(self, tmp_path: Path) -> None:
        config = ReplayConfig(curves=tmp_path / "curves.csv", faults={"killed": 0.25})
        command = replay_command(config, MIXED, PARAMETERS, 7, tmp_path)
        assert command[0] == "nas-attn-replay"
        training = parse_replay_command(command)
        assert training.config == config
        assert (training.plan_text, training.parameters) == (MIXED, PARAMETERS)
        assert (training.seed, training.save_dir) == (7, tmp_path)

    def test_names_no_relative_folder(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        config = ReplayConfig(curves=Path("curves.csv"))
        training = parse_replay_command(replay_command(config, MIXED, 1, 1, Path("run")))
        assert training.config.curves == tmp_path / "curves.csv"
        assert training.save_dir == tmp_path / "run"

    def test_refuses_other_commands_and_configurations(self, tmp_path: Path) -> None:
        with pytest.raises(NasAttnError, match="nas-attn-replay, but is 'fairseq-train data'"):
            parse_replay_command(["fairseq-train", "data"])
        command = replay_command(ReplayConfig(), MIXED, 1, 1, tmp_path)
        with pytest.raises(ConfigError, match=r"faults\.lightning"):
            parse_replay_command([*command[:-1], '{"faults": {"lightning": 0.1}}'])
        with pytest.raises(ConfigError, match="is not JSON"):
            parse_replay_command([*command[:-1], "{"])


def cpu_seconds_of_children() -> float:
    """Of those that have ended; other work on the machine does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class TestProcess:
    def test_a_whole_training(self, tmp_path: Path) -> None:
        config = ReplayConfig(seconds=0.6)
        began = time.time()
        code, output = run(config, tmp_path)
        assert code == 0, output
        assert time.time() - began > 0.6
        assert reported(tmp_path) == expected(config)
        first, last = report(tmp_path)[0], report(tmp_path)[-1]
        assert 0 < last["time"] - first["time"] < 5  # the first comes late where much else runs
        assert last["parameters"] == {"total": PARAMETERS}
        assert last["phase"] is None
        assert last["metrics"]["nll_loss"] == last["metrics"]["loss"]
        assert last["metrics"]["ppl"] == pytest.approx(2 ** last["metrics"]["loss"])
        folder = tmp_path / "checkpoints"
        assert sorted(path.name for path in folder.iterdir()) == [
            "attempts",
            "checkpoint_best.pt",
            "checkpoint_last.pt",
        ]
        for name in ("checkpoint_best.pt", "checkpoint_last.pt"):
            assert checkpoint_is_whole(folder / name)
            assert validations_in(folder / name) == 9
        assert "valid | loss" in output
        assert "done training" in output

    def test_once_done_it_repeats_nothing(self, tmp_path: Path) -> None:
        config = ReplayConfig(seconds=0.0, faults={"killed": 0.0})
        assert run(config, tmp_path)[0] == 0
        certain = config.model_copy(update={"faults": {"killed": 1.0}})
        assert run(certain, tmp_path)[0] == 0
        assert reported(tmp_path) == expected(config)
        assert (tmp_path / "checkpoints" / "attempts").read_text("utf-8") == "2\n"

    def test_a_recorded_curve_at_its_own_pace(self, tmp_path: Path) -> None:
        """Its best validation is not the last, and it took another time."""
        curve = Curve((Point(10, 4.0, 100.0), Point(20, 3.0, 150.0), Point(30, 3.5, 1000.0)))
        write_curves({(MIXED, 1): curve}, tmp_path / "curves.csv")
        config = ReplayConfig(curves=tmp_path / "curves.csv", seconds=1.0)
        code, output = run(config, tmp_path, MIXED)
        assert code == 0, output
        assert reported(tmp_path) == [(10, 4.0), (20, 3.0), (30, 3.5)]
        times = [line["time"] for line in report(tmp_path)]
        assert 0.6 < times[2] - times[1] < 5
        assert validations_in(tmp_path / "checkpoints" / "checkpoint_best.pt") == 2
        assert validations_in(tmp_path / "checkpoints" / "checkpoint_last.pt") == 3

    def test_what_is_not_recorded_fails_in_plain_words(self, tmp_path: Path) -> None:
        write_curves({(MIXED, 1): Curve((Point(1, 2.0, 1.0),))}, tmp_path / "curves.csv")
        code, output = run(ReplayConfig(curves=tmp_path / "curves.csv"), tmp_path)
        assert code == 1
        assert output.startswith(str(tmp_path / "curves.csv"))
        assert "holds no curve" in output

    def test_without_a_report_file_it_trains_all_the_same(self, tmp_path: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "NAS_ATTN_REPORT"}
        command = arguments(ReplayConfig(seconds=0.0), tmp_path)
        subprocess.run(command, env=environment, capture_output=True, check=True)
        assert checkpoint_is_whole(tmp_path / "checkpoints" / "checkpoint_last.pt")

    @pytest.mark.parametrize("draw_seed", [1, 2, 3])
    def test_killed_at_random_times_it_reports_as_if_unbroken(
        self, tmp_path: Path, draw_seed: int
    ) -> None:
        config = ReplayConfig(seconds=1.5, validations=60)
        draw = random.Random(draw_seed)
        kills = 0
        for _ in range(6):
            process = start(config, tmp_path)
            enough = len(report(tmp_path)) + draw.randrange(12)
            while len(report(tmp_path)) < enough and process.poll() is None:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.05))
            process.kill()
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
            if process.returncode == 0:
                break
        assert kills
        code, output = run(config, tmp_path)
        assert code == 0, output
        lines = reported(tmp_path)
        repeated = [update for update, count in Counter(u for u, _ in lines).items() if count > 1]
        assert len(lines) - len(repeated) == 60
        assert len(repeated) <= kills
        assert list(dict.fromkeys(lines)) == expected(config)

    def test_killed_between_report_and_checkpoint_it_repeats_one_validation(
        self, tmp_path: Path
    ) -> None:
        config = ReplayConfig(seconds=0.0, validations=4)
        assert run(config, tmp_path)[0] == 0
        checkpoint = tmp_path / "checkpoints" / "checkpoint_last.pt"
        with zipfile.ZipFile(checkpoint, "w") as archive:
            archive.writestr("replay.json", '{"validations": 3}')
        assert run(config, tmp_path)[0] == 0
        assert reported(tmp_path) == [*expected(config), expected(config)[-1]]

    def test_starts_fast_and_without_torch(self, tmp_path: Path) -> None:
        code = (
            "import sys, nas_attn.simulation.command\n"
            "print({'torch', 'numpy', 'fairseq', 'pandas'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == "set()\n"
        seconds = []
        for number in range(4):
            began = cpu_seconds_of_children()
            assert run(ReplayConfig(seconds=0.0), tmp_path / str(number))[0] == 0
            seconds.append(cpu_seconds_of_children() - began)
        assert min(seconds) < 0.8, "half of it on a quiet machine"


class TestFaults:
    """With nine validations the first attempt's fault strikes after four."""

    def certain(self, fault: FaultName) -> ReplayConfig:
        return ReplayConfig(seconds=0.1, faults={fault: 1.0})

    @pytest.mark.parametrize(
        ("fault", "status", "last_line"),
        [
            ("out_of_memory", 1, "torch.OutOfMemoryError: CUDA out of memory"),
            ("disk_full", 1, "OSError: [Errno 28] No space left on device"),
            ("training_error", 1, "ValueError: a replayed training error"),
            ("killed", -signal.SIGKILL, ""),
        ],
    )
    def test_ends_the_process(
        self, tmp_path: Path, fault: FaultName, status: int, last_line: str
    ) -> None:
        config = self.certain(fault)
        code, output = run(config, tmp_path)
        assert code == status
        assert last_line in output.splitlines()[-1]
        assert reported(tmp_path) == expected(config)[:4]
        assert validations_in(tmp_path / "checkpoints" / "checkpoint_last.pt") == 4

    def test_not_finite_stays_so_and_is_not_saved(self, tmp_path: Path) -> None:
        config = self.certain("not_finite")
        code, output = run(config, tmp_path)
        assert code == 0, output
        lines = reported(tmp_path)
        assert lines[:4] == expected(config)[:4]
        assert [update for update, _ in lines[4:]] == [500, 600, 700, 800, 900]
        assert all(math.isnan(loss) for _, loss in lines[4:])
        assert validations_in(tmp_path / "checkpoints" / "checkpoint_last.pt") == 4

    def test_hung_lives_but_moves_no_more(self, tmp_path: Path) -> None:
        config = self.certain("hung")
        process = start(config, tmp_path)
        try:
            wait_for(lambda: len(report(tmp_path)) == 4)
            time.sleep(0.5)
            assert process.poll() is None
            assert reported(tmp_path) == expected(config)[:4]
            process.terminate()
            assert process.wait(10) == -signal.SIGTERM
        finally:
            process.kill()
            process.communicate()

    def test_attempts_go_on_until_one_succeeds(self, tmp_path: Path) -> None:
        faults: dict[FaultName, float] = {"killed": 0.3, "training_error": 0.3}
        config = ReplayConfig(seconds=0.0, faults=faults)
        drawn = [drawn_fault(config, MIXED, 1, attempt) for attempt in range(1, 30)]
        needed = 1 + drawn.index(None)
        codes: list[int] = []
        while not codes or codes[-1] != 0:
            codes.append(run(config, tmp_path, MIXED)[0])
            assert len(codes) < 30
        assert len(codes) <= needed
        assert reported(tmp_path) == expected(config, MIXED)
        assert (tmp_path / "checkpoints" / "attempts").read_text("utf-8") == f"{len(codes)}\n"
