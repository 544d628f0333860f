"""What a training says of its memory, and how it ends where that is not enough."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fairseq_plugin.memory import STATUS, PeakMemory, resident_peak
from nas_attn.fairseq_tools.commands import training_command
from nas_attn.fairseq_tools.config import TrainingConfig
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.plan import SITES, AttentionChoice, AttentionPlan
from nas_attn.trials.failures import FailureKind, failure_after
from nas_attn.validation_log import REPORT_FILE, REPORT_VARIABLE, read_report
from tests.helpers.forked import Done, run_module
from tests.helpers.paths import ROOT

ARGUMENTS = {
    "criterion": "label_smoothed_cross_entropy",
    "optimizer": "adam",
    "lr": 0.003,
    "max-tokens": 256,
    "max-epoch": 1,
    "num-workers": 0,
    "share-all-embeddings": True,
} | {
    f"{side}-{name}": value
    for side in ("encoder", "decoder")
    for name, value in {
        "layers": 1, "embed-dim": 16, "ffn-embed-dim": 16, "attention-heads": 4,
    }.items()
}  # fmt: skip


def train(module: str, data: PreparedData, folder: Path, *, reports: bool) -> Done:
    config = TrainingConfig.model_validate({"arguments": ARGUMENTS})
    plan = AttentionPlan.uniform(AttentionChoice("multi_head"), SITES)
    command = training_command(config, data, plan, seed=1, metric="loss", save_dir=folder / "c")
    environment = {**os.environ}
    environment.pop(REPORT_VARIABLE, None)
    if reports:
        environment[REPORT_VARIABLE] = str(folder / REPORT_FILE)
    return run_module(module, command[1:], cwd=ROOT, environment=environment)


@pytest.mark.parametrize("reports", [True, False])
def test_no_batch_is_left_out(
    reports: bool, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    """By a trial's training; who runs fairseq-train without a report gets what fairseq does."""
    done = train("tests.helpers.short_of_memory", tiny_translation, tmp_path, reports=reports)
    log = done.stdout + done.stderr
    assert ("attempting to recover from OOM" in log) is not reports
    assert (tmp_path / REPORT_FILE).exists() is False
    if not reports:
        assert done.status == 0
        return
    failure = failure_after("fairseq-train", done.status, log, oom_killed=False)
    assert failure.kind is FailureKind.OUT_OF_MEMORY
    assert "OutOfMemoryError: the memory was not enough for a batch" in failure.message


def test_a_training_reports_its_peak(tiny_translation: PreparedData, tmp_path: Path) -> None:
    done = train("fairseq_cli.train", tiny_translation, tmp_path, reports=True)
    assert done.status == 0, done.stderr
    (line,) = read_report(tmp_path)
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    assert list(line["memory"]) == [kind]
    if kind == "cpu":
        assert 100 < line["memory"][kind] < 20_000, "MiB of Python with torch and fairseq"


def test_the_peak_does_not_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    """fairseq makes torch forget its own after every update."""
    allocated = iter([10, 50, 20, 30])
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: next(allocated) * 2**20)
    peak = PeakMemory()
    for _ in range(3):
        peak.look()
    assert peak.of_largest_process(torch.device("cpu"))["cpu"] == pytest.approx(
        resident_peak(), rel=0.1
    )
    assert peak._of_gpu == 50


@pytest.mark.skipif(not STATUS.is_file(), reason="the system does not say")
def test_the_peak_of_a_process_is_its_own() -> None:
    """getrusage counts a large process as its children's peak, from before they became another."""
    ballast = torch.ones(80 * 2**20)  # 320 MiB
    assert resident_peak() > 320
    script = f"print(open('{STATUS}').read().partition('VmHWM:')[2].split()[0])"
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, check=True)
    assert int(done.stdout) / 1024 < 100
    del ballast


def test_the_largest_of_several_processes(tmp_path: Path) -> None:
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        told = PeakMemory().of_largest_process(torch.device("cpu"))
    finally:
        dist.destroy_process_group()
    assert told["cpu"] == pytest.approx(resident_peak(), rel=0.1)
