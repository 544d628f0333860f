"""fairseq's commands, run as a user runs them, on every scheme: train, resume, decode, evaluate."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nas_attn.attention import SCHEMES
from nas_attn.fairseq_tools.commands import plugin_folder, training_command
from nas_attn.fairseq_tools.config import TrainingConfig
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.self_test import MIXED as MIXED_ROW
from nas_attn.fairseq_tools.self_test import TASKS, examine
from nas_attn.plan import AttentionChoice, AttentionPlan
from tests.helpers.devices import needs_cuda
from tests.helpers.forked import run_module
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow

COMMON = [
    "--encoder-layers=1", "--decoder-layers=1", "--encoder-embed-dim=16", "--decoder-embed-dim=16",
    "--encoder-ffn-embed-dim=16", "--decoder-ffn-embed-dim=16", "--encoder-attention-heads=4",
    "--decoder-attention-heads=4", "--share-all-embeddings", "--dropout=0.1",
]  # fmt: skip
TRAINING = [
    "--optimizer=adam", "--lr=0.003", "--max-tokens=512", "--num-workers=0", "--seed=1",
    "--no-epoch-checkpoints", "--required-batch-size-multiple=1", "--log-format=json",
]  # fmt: skip
TRANSLATION = ["--criterion=label_smoothed_cross_entropy", *COMMON, *TRAINING]
EVERY = [AttentionChoice(scheme) for scheme in SCHEMES]
MIXED = AttentionPlan.of(
    {"encoder_self": EVERY, "decoder_self": EVERY[1:] + EVERY[:1], "encoder_decoder": EVERY[::-1]}
)
"""Every scheme at every site, another one in each layer."""
DEEP = [f"--{side}-layers={len(EVERY)}" for side in ("encoder", "decoder")]


def fairseq(
    module: str, arguments: list[str], stdin: str = "", user_dir: str = "fairseq_plugin"
) -> str:
    """Run a fairseq command in the checkout with a relative --user-dir; returns what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    arguments = [*arguments, f"--user-dir={user_dir}"]
    done = run_module(
        f"fairseq_cli.{module}", arguments, stdin=stdin, cwd=ROOT, environment=environment
    )
    assert done.status == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def num_updates(checkpoint: Path) -> int:
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    return int(state["optimizer_history"][-1]["num_updates"])


STEPS = {
    "translation": {("translation", step) for step in ("train", "resume", "generate")},
    "language_modeling": {("language_modeling", step) for step in ("train", "resume", "eval")},
    "masked_lm": {
        *(("masked_lm", step) for step in ("train", "resume", "eval")),
        *(("sentence_prediction", step) for step in ("fine-tune", "eval")),
    },
}
ROWS = [
    *((MIXED_ROW, task) for task in TASKS),
    *((scheme, TASKS[number % len(TASKS)]) for number, scheme in enumerate(SCHEMES)),
]
"""A model of all schemes on every task, and every scheme alone in turns; `doctor` tries all."""
OFTEN = [
    (MIXED_ROW, "translation"),
    (MIXED_ROW, "language_modeling"),
    ("head_embedding_add", "masked_lm"),  # with a classifier, for which twelve layers take long
]


@pytest.mark.timeout(1700)
@pytest.mark.parametrize(
    ("scheme", "task"),
    [pytest.param(*row, marks=[] if row in OFTEN else pytest.mark.long) for row in ROWS],
)
def test_task(scheme: str, task: str, tmp_path: Path) -> None:
    """Train, resume, generate or evaluate; a classifier from the masked language model."""
    findings = examine([scheme], [task], tmp_path)
    assert {(f.task, f.step): f.fault for f in findings} == dict.fromkeys(STEPS[task])


@pytest.mark.parametrize(
    "precision",
    [
        "memory-efficient-fp16",
        pytest.param("fp16", marks=needs_cuda),  # --bf16 means a TPU: see test_hydra
    ],
)
def test_training_in_half_precision_and_interactive(
    precision: str, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    """A plan of every scheme, with layer drop and activation checkpointing on top."""
    data = str(tiny_translation.folder)
    arguments = [data, "--arch=multi_head_transformer", "--attention-plan", MIXED.dumps()]
    arguments += [*TRANSLATION, *DEEP, f"--save-dir={tmp_path}", "--max-epoch=1", f"--{precision}"]
    arguments += ["--encoder-layerdrop=0.2", "--decoder-layerdrop=0.2", "--checkpoint-activations"]
    fairseq("train", arguments)
    last = tmp_path / "checkpoint_last.pt"
    state = torch.load(last, weights_only=True)
    stored = AttentionPlan.parse(state["cfg"]["model"].attention_plan)
    assert stored == MIXED  # a checkpoint explains itself
    decoding = [data, f"--path={last}", "--beam=5", "--max-len-b=12"]
    output = fairseq("interactive", decoding, stdin="ba ta si\nfo ku\n")
    assert output.count("\nH-") == 2


def test_two_processes(tiny_translation: PreparedData, tmp_path: Path) -> None:
    """Train, vote together and resume on two processes (gloo)."""
    voting = AttentionChoice.of("grouped_head", keep="threshold", vote_threshold=0.5)
    plan = AttentionPlan.of(
        {site: [voting if c.scheme == "grouped_head" else c for c in cs] for site, cs in MIXED}
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [
        str(tiny_translation.folder), "--arch=multi_head_transformer",
        "--attention-plan", plan.dumps(), *TRANSLATION, *DEEP,
        f"--save-dir={tmp_path}", "--user-dir=fairseq_plugin",
        "--criterion=grouped_label_smoothed_cross_entropy", "--vote-at-update=1",
        "--vote-updates=2",
        "--distributed-world-size=2", "--distributed-no-spawn", "--distributed-backend=gloo",
        "--ddp-backend=legacy_ddp",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    for epochs in (1, 2):
        address = f"--distributed-init-method=tcp://127.0.0.1:{port + epochs - 1}"
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "fairseq_cli.train", *arguments, address,
                 f"--distributed-rank={rank}", f"--max-epoch={epochs}"],
                cwd=ROOT, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for rank in range(2)
        ]  # fmt: skip
        outputs = [process.communicate(timeout=240)[0] for process in ranks]
        assert [process.returncode for process in ranks] == [0, 0], outputs[0][-3000:]
        if epochs == 1:
            first = num_updates(tmp_path / "checkpoint_last.pt")
            assert "of each attention module stay" in outputs[0]
    weights = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)["model"]
    ballots = [tensor for name, tensor in weights.items() if name.endswith(".votes")]
    assert [int(votes.sum()) for votes in ballots] == [2 * 2 * 2] * 3, "groups, updates, processes"
    assert num_updates(tmp_path / "checkpoint_last.pt") == 2 * first


def test_resuming_is_exact(tiny_translation: PreparedData, tmp_path: Path) -> None:
    """A search's training that stops after an epoch and goes on ends with the very same weights."""
    plan = AttentionPlan.uniform(AttentionChoice.of("collaborative", shared_dim=4))
    arguments = {
        **dict(flag.removeprefix("--").split("=") for flag in COMMON if "=" in flag),
        "share-all-embeddings": True,
        "criterion": "label_smoothed_cross_entropy",
        "optimizer": "adam",
        "lr": 0.003,
        "max-tokens": 512,
    }
    weights = []
    for name, epochs in (("unbroken", [3]), ("broken", [1, 3])):
        for max_epoch in epochs:
            config = TrainingConfig(arguments={**arguments, "max-epoch": max_epoch})
            command = training_command(
                config, tiny_translation, plan, seed=1, metric="loss", save_dir=tmp_path / name
            )
            command.remove("--user-dir")
            command.remove(str(plugin_folder()))
            fairseq("train", command[1:])
        state = torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True)
        weights.append(state["model"])
    for key, weight in weights[0].items():
        assert torch.equal(weight, weights[1][key]), key


def test_checkpoints_need_only_what_is_allowed(
    tiny_translation: PreparedData, tmp_path: Path
) -> None:
    """A checkpoint that carries code is refused, although the plugin allows fairseq's own types."""
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {marker}",)

    path = tmp_path / "checkpoint.pt"
    torch.save({"args": Payload(), "model": {}}, path)
    command = [sys.executable, "-m", "fairseq_cli.generate", str(tiny_translation.folder),
               f"--path={path}", "--user-dir=fairseq_plugin"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Weights only load failed" in done.stderr
    assert not marker.exists()
