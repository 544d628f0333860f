"""Replayed trainings: the curves, what a process of its own does with them, and its faults."""

from __future__ import annotations

import json
import math
import os
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from nas_attn.curves import Curve, Point, recorded_curves, write_curves
from nas_attn.errors import ConfigError, DataError, NasAttnError
from nas_attn.plan import SITES, AttentionChoice, AttentionPlan
from nas_attn.simulation.command import parse_replay_command, replay_command
from nas_attn.simulation.synthetic import (
    FaultName,
    ReplayConfig,
    curve_of,
    drawn_fault,
    synthetic_curve,
    validations_before_fault,
)
from nas_attn.trials.layout import checkpoint_is_whole

MULTI_HEAD = AttentionPlan.uniform(AttentionChoice.of("multi_head")).dumps()
MULTI_QUERY = AttentionPlan.uniform(AttentionChoice.of("multi_query")).dumps()
MIXED = AttentionPlan.of(
    {
        "encoder_self": [AttentionChoice.of("collaborative", shared_dim=d) for d in (8, 16)],
        "decoder_self": AttentionChoice.of("multi_query"),
        "encoder_decoder": AttentionChoice.of("multi_head"),
    }
).dumps()
PARAMETERS = 250_000
HEADER = "plan,seed,num_updates,loss,seconds\n"
QUOTED = '"' + MULTI_HEAD.replace('"', '""') + '"'


def losses(curve: Curve) -> list[float]:
    return [point.loss for point in curve.points]


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


class TestConfig:
    def test_defaults_are_a_made_up_curve_without_faults(self) -> None:
        config = ReplayConfig()
        assert config.curves is None
        assert len(curve_of(config, MULTI_HEAD, PARAMETERS, 1).points) == 9
        assert config.faults == {}

    def test_probabilities_sum_to_one_at_most(self) -> None:
        assert ReplayConfig(faults=dict.fromkeys(get_args(FaultName), 1 / 6)).faults
        with pytest.raises(ValidationError, match=re.escape("sum to at most 1, not 1.1")):
            ReplayConfig(faults={"killed": 0.5, "hung": 0.6})

    @pytest.mark.parametrize(
        "values",
        [
            {"faults": {"lightning": 0.5}},
            {"faults": {"killed": 1.5}},
            {"validations": 0},
            {"noise": -0.1},
            {"seconds": -1.0},
            {"seconds": math.inf},
            {"speed": 1},
        ],
        ids=str,
    )
    def test_refuses(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            ReplayConfig.model_validate(values)


class TestSyntheticCurve:
    def test_falls_over_the_validations_asked_for(self) -> None:
        config = ReplayConfig(validations=7, updates_per_validation=50, seconds=3.5)
        points = synthetic_curve(config, MIXED, PARAMETERS, 1).points
        assert [point.num_updates for point in points] == [50, 100, 150, 200, 250, 300, 350]
        assert [point.seconds for point in points] == pytest.approx([0.5 * n for n in range(1, 8)])
        assert [point.loss for point in points] == sorted(
            (point.loss for point in points), reverse=True
        )

    def test_is_the_same_in_every_process(self) -> None:
        config = ReplayConfig(faults={"killed": 0.5})
        code = (
            "import sys; from nas_attn.simulation.synthetic import *\n"
            "config = ReplayConfig(faults={'killed': 0.5})\n"
            "for plan in sys.argv[1:]:\n"
            "    print([tuple(p) for p in synthetic_curve(config, plan, 250_000, 3).points])\n"
            "    print([drawn_fault(config, plan, 3, attempt) for attempt in range(1, 20)])\n"
        )
        here = ""
        for plan in (MULTI_HEAD, MIXED):
            here += f"{[tuple(p) for p in synthetic_curve(config, plan, 250_000, 3).points]}\n"
            here += f"{[drawn_fault(config, plan, 3, attempt) for attempt in range(1, 20)]}\n"
        for hash_seed in ("1", "2"):
            there = subprocess.run(
                [sys.executable, "-c", code, MULTI_HEAD, MIXED],
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
                capture_output=True,
                text=True,
                check=True,
            )
            assert there.stdout == here

    @pytest.mark.parametrize("small", [50_000, 200_000, 1_000_000, 4_000_000])
    @pytest.mark.parametrize("ratio", [1.3, 2, 4])
    def test_curves_of_different_sizes_cross(self, small: int, ratio: float) -> None:
        config = ReplayConfig(noise=0.0)
        smaller = losses(synthetic_curve(config, MULTI_HEAD, small, 1))
        larger = losses(synthetic_curve(config, MULTI_HEAD, int(small * ratio), 1))
        assert smaller[0] < larger[0]
        assert smaller[-1] > larger[-1]

    def test_noise_is_of_the_final_loss_over_seeds(self) -> None:
        config = ReplayConfig(noise=0.05)
        finals = [
            losses(synthetic_curve(config, MIXED, PARAMETERS, seed))[-1] for seed in range(2000)
        ]
        quiet = synthetic_curve(ReplayConfig(noise=0.0), MIXED, PARAMETERS, 1)
        assert statistics.stdev(finals) == pytest.approx(0.05, rel=0.1)
        assert statistics.fmean(finals) == pytest.approx(losses(quiet)[-1], abs=0.005)

    def test_choices_add_up_over_the_sites_but_for_a_little(self) -> None:
        config = ReplayConfig(noise=0.0)

        def final(*schemes: str) -> float:
            choices = {
                site: AttentionChoice.of(scheme)
                for site, scheme in zip(SITES, schemes, strict=True)
            }
            plan = AttentionPlan.of(choices).dumps()
            return losses(synthetic_curve(config, plan, PARAMETERS, 1))[-1]

        first, second = "multi_head", "grouped_query"
        neither, both = final(first, first, first), final(second, second, first)
        one, other = final(second, first, first), final(first, second, first)
        assert len({neither, both, one, other}) == 4
        assert both - neither == pytest.approx(one - neither + other - neither, abs=0.04)

    def test_is_made_fast_enough_for_a_long_search(self) -> None:
        choices = [AttentionChoice.of("collaborative", shared_dim=d) for d in (8, 16, 32, 64)]
        draw = random.Random(1)
        plans = [
            AttentionPlan.of({site: draw.choices(choices, k=6) for site in SITES}).dumps()
            for _ in range(500)
        ]
        config = ReplayConfig()
        began = time.process_time()
        for plan in plans:
            synthetic_curve(config, plan, PARAMETERS, 1)
        # About 40 microseconds each on an idle machine.
        assert (time.process_time() - began) / len(plans) < 500e-6


class TestFaultDraw:
    def test_frequencies_are_the_probabilities(self) -> None:
        config = ReplayConfig(faults={"hung": 0.1, "killed": 0.3})
        drawn = Counter(drawn_fault(config, MIXED, seed, 1) for seed in range(5000))
        assert drawn["hung"] / 5000 == pytest.approx(0.1, abs=0.02)
        assert drawn["killed"] / 5000 == pytest.approx(0.3, abs=0.03)
        assert set(drawn) == {"hung", "killed", None}

    def test_another_attempt_draws_anew(self) -> None:
        config = ReplayConfig(faults={"killed": 0.5})
        attempts = [drawn_fault(config, MIXED, 1, attempt) for attempt in range(1, 50)]
        assert set(attempts) == {"killed", None}

    def test_all_or_nothing(self) -> None:
        certain = ReplayConfig(faults={"disk_full": 1.0})
        assert {drawn_fault(certain, MIXED, seed, 1) for seed in range(500)} == {"disk_full"}
        assert {drawn_fault(ReplayConfig(), MIXED, seed, 1) for seed in range(500)} == {None}

    def test_strikes_half_way_through_what_is_left(self) -> None:
        assert validations_before_fault(0, 9) == 4
        assert validations_before_fault(4, 9) == 6
        assert validations_before_fault(8, 9) == 8
        assert validations_before_fault(9, 9) == 9


class TestRecordedCurves:
    def make(self) -> dict[tuple[str, int], Curve]:
        return {
            (MULTI_HEAD, 1): Curve((Point(100, 4.25, 10.1), Point(250, 1 / 3, 20.7))),
            (MIXED, 1): Curve((Point(100, 5.5, 9.0), Point(200, math.inf, 18.0))),
            (MIXED, 2): Curve((Point(7, 5.25, 9.0),)),
        }

    def test_round_trip(self, tmp_path: Path) -> None:
        path = tmp_path / "curves.csv"
        write_curves(self.make(), path)
        assert recorded_curves(path) == self.make()
        assert [entry.name for entry in tmp_path.iterdir()] == ["curves.csv"]

    def test_columns_and_curves_may_stand_in_any_order(self, tmp_path: Path) -> None:
        path = tmp_path / "curves.csv"
        rows = ["loss,seed,seconds,num_updates,plan", f"4.0,1,1,100,{QUOTED}"]
        rows += [f"4.5,2,1,100,{QUOTED}", f"nan,1,2,200,{QUOTED}"]
        path.write_text("\n".join(rows), "utf-8")
        curves = recorded_curves(path)
        assert list(curves) == [(MULTI_HEAD, 1), (MULTI_HEAD, 2)]
        assert math.isnan(curves[MULTI_HEAD, 1].points[1].loss)

    def test_curve_of_takes_the_recorded_one(self, tmp_path: Path) -> None:
        path = tmp_path / "curves.csv"
        write_curves(self.make(), path)
        config = ReplayConfig(curves=path, seconds=0.5)
        assert curve_of(config, MIXED, PARAMETERS, 2) == self.make()[MIXED, 2]
        assert curve_of(config, MULTI_HEAD, PARAMETERS, 1).seconds == 20.7

    def test_curve_of_sees_a_new_file(self, tmp_path: Path) -> None:
        path = tmp_path / "curves.csv"
        config = ReplayConfig(curves=path)
        for seconds in (1.0, 2.0):
            write_curves({(MIXED, 1): Curve((Point(1, 2.0, seconds),))}, path)
            os.utime(path, (seconds, seconds))
            assert curve_of(config, MIXED, PARAMETERS, 1).seconds == seconds

    def test_says_what_is_not_recorded(self, tmp_path: Path) -> None:
        path = tmp_path / "curves.csv"
        write_curves(self.make(), path)
        config = ReplayConfig(curves=path)
        with pytest.raises(NasAttnError, match="no curve of seed 3, only of seeds 1, 2, for plan"):
            curve_of(config, MIXED, PARAMETERS, 3)
        with pytest.raises(NasAttnError, match=r"no curve of seed 1, of no seed, for plan .*query"):
            curve_of(config, MULTI_QUERY, PARAMETERS, 1)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "line 1: must be plan,seed,num_updates,loss,seconds, but is nothing"),
            ("plan,seed,loss,seconds\n", "line 1: must be plan,.*, but is plan,seed,loss,seconds"),
            (HEADER, "holds no curve"),
            (f"{HEADER}{QUOTED},1,100,4.0\n", "line 2: must have 5 cells"),
            (f"{HEADER}{QUOTED},1,100,4.0,1,1\n", "line 2: must have 5 cells"),
            (f"{HEADER}{QUOTED},one,100,4.0,1\n", "line 2, column seed: .* but is 'one'"),
            (f"{HEADER}{QUOTED},1,1e2,4.0,1\n", "line 2, column num_updates: must be a whole"),
            (f"{HEADER}{QUOTED},1,0,4.0,1\n", "line 2, column num_updates: must be above 0"),
            (f"{HEADER}{QUOTED},1,100,low,1\n", "line 2, column loss: must be a number, but"),
            (f"{HEADER}{QUOTED},1,100,4.0,\n", "line 2, column seconds: must be a number, but"),
            (f"{HEADER}{QUOTED},1,100,4.0,-1\n", "line 2, column seconds: must be finite and"),
            (f"{HEADER}{QUOTED},1,100,4.0,inf\n", "line 2, column seconds: must be finite and"),
            (f"{HEADER}{QUOTED},1,100,4.0,nan\n", "line 2, column seconds: must be finite and"),
            (f"{HEADER}multi_head,1,100,4.0,1\n", "line 2, column plan: is no plan"),
            (f"{HEADER}[],1,100,4.0,1\n", "line 2, column plan: is no plan"),
            (
                f'{HEADER}"{{""encoder_self"":""multi_head""}}",1,100,4.0,1\n',
                'line 2, column plan: must be written {"encoder_self": {"scheme": "multi_head"}}',
            ),
            (
                f"{HEADER}{QUOTED},1,100,4.0,1\n{QUOTED},1,100,3.0,2\n",
                "line 3, column num_updates: must be above 100",
            ),
            (
                f"{HEADER}{QUOTED},1,100,4.0,2\n{QUOTED},1,200,3.0,1\n",
                "line 3, column seconds: must be finite and not below 2.0",
            ),
            ('"half', "line 1: unexpected end of data"),
            (f'{HEADER}{QUOTED},1,100,4.0,1\n"half', "line 3: unexpected end of data"),
        ],
    )
    def test_refuses_a_malformed_file(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "curves.csv"
        path.write_text(text, "utf-8")
        with pytest.raises(DataError, match=message):
            recorded_curves(path)

    def test_refuses_what_is_no_text_or_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "curves.csv"
        with pytest.raises(DataError, match="cannot be read"):
            curve_of(ReplayConfig(curves=path), MIXED, PARAMETERS, 1)
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match="cannot be read"):
            recorded_curves(path)


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
        assert 0.4 < last["time"] - first["time"] < 5
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
        assert min(seconds) < 0.5


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
