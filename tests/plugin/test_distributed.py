"""Trainings on several processes are those on one with as many batches an update.

On a CPU processes talk by gloo. What fairseq does with several GPUs runs here as far as it can
without any: `tests/helpers/gpus_that_are_not`.

How equal: two processes add up gradients in another order than one process does, which in float32
changes their last digits. Adam divides gradients by their own size, so it makes whole steps of such
digits where a gradient is nothing else: in the biases of keys, which the softmax cancels. They
differ and change no loss. Losses agree to 1e-5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nas_attn.attention import SCHEMES
from nas_attn.attention.pruning import Phase
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.plan import SITES, AttentionChoice, AttentionPlan
from nas_attn.validation_log import REPORT_FILE
from tests.helpers.devices import needs_cuda
from tests.helpers.grouped import GROUPED, Bench, buffers, weights_of
from tests.helpers.paths import ROOT
from tests.helpers.ranks import USER_DIR, start, train_on, wait_for

pytestmark = [  # fairseq's training step and its loader of batches warn so
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.cuda.amp.autocast:FutureWarning"),
    pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda':UserWarning"),
]

SIZES = [
    f"--{side}-{name}={size}" for side in ("encoder", "decoder")
    for name, size in (("embed-dim", 16), ("ffn-embed-dim", 16), ("attention-heads", 4))
]  # fmt: skip
TRAINING = [
    *SIZES, "--share-all-embeddings", "--dropout=0", "--optimizer=adam", "--lr=0.003",
    "--max-tokens=512", "--num-workers=0", "--seed=1", "--required-batch-size-multiple=1",
    "--log-format=json", "--update-epoch-batch-itr=True", "--no-epoch-checkpoints",
    "--task=reported_translation", f"--criterion={GROUPED}", "--report-accuracy",
]  # fmt: skip
ONE_LAYER = ["--encoder-layers=1", "--decoder-layers=1"]
VOTING = ["--arch=grouped_head_transformer", "--keep=pillars", "--vote-at-epoch=2"]


def reported(folder: Path) -> list[dict[str, Any]]:
    """The validations of a training, one for each epoch if one process alone has written them."""
    lines = (folder / REPORT_FILE).read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_trained_alike(one: Path, two: Path) -> None:
    """Two trainings had the same losses, votes and masks, to rounding."""
    expected, found = reported(one), reported(two)
    for name in ("epoch", "num_updates", "phase", "parameters"):
        assert [line[name] for line in found] == [line[name] for line in expected]
    for mine, other in zip(found, expected, strict=True):
        for name, value in other["metrics"].items():
            if name.startswith(("loss", "nll_loss", "ppl", "accuracy", "bleu")):
                assert mine["metrics"][name] == pytest.approx(value, rel=1e-5), name
    weights, others = weights_of(two / LAST), weights_of(one / LAST)
    for name in ("votes", "together", "kept", "schedule"):
        assert buffers(weights, name) == buffers(others, name)
    assert difference(weights, others) < 1e-4


def difference(weights: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The largest of all weights that act."""
    return max(
        float((weights[name] - other).abs().max())
        for name, other in others.items()
        if other.is_floating_point()
        and other.numel()
        and not name.endswith(("k_proj.bias", ".shift"))
    )


LAST = "checkpoint_last.pt"


def test_two_processes_vote_and_train_as_one(
    tiny_translation: PreparedData, tmp_path: Path
) -> None:
    """The vote counts the batches of both, and is part of what the first one saves and reports."""
    flags = [str(tiny_translation.folder), *TRAINING, *ONE_LAYER, *VOTING, "--max-epoch=2"]
    flags += ["--ddp-backend=legacy_ddp"]
    one, two = tmp_path / "one", tmp_path / "two"
    train_on(1, [*flags, "--update-freq=2"], one)
    outputs = train_on(2, flags, two)
    assert_trained_alike(one, two)
    kept, votes = (buffers(weights_of(two / LAST), name) for name in ("kept", "votes"))
    assert [sum(heads) for heads in kept] == [2] * 3
    phase, epoch, batches = buffers(weights_of(two / LAST), "schedule")[0]
    assert (phase, epoch) == (Phase.SETTLED, 2)
    assert [sum(heads) for heads in votes] == [2 * batches] * 3, "a vote a group and batch"
    logged = [json.loads(line[line.index("{"):]) for line in outputs[0].splitlines()
              if "| train | {" in line]  # fmt: skip
    alone = [json.loads(line[line.index("{"):]) for line in
             (one / "rank0.log").read_text().splitlines() if "| train | {" in line]  # fmt: skip
    for name in ("train_loss", "train_nll_loss", "train_group_within", "train_group_between"):
        assert float(logged[0][name]) == pytest.approx(float(alone[0][name]), abs=2e-3), name
    assert logged[1]["train_group_within"] is alone[1]["train_group_within"] is None
    assert "| valid |" not in outputs[1], "only the first process says anything"


def every_scheme() -> list[str]:
    """A layer of every scheme at every site, with heads to be voted on."""
    voting = AttentionChoice.of("grouped_head", keep="threshold", vote_threshold=0.5)
    every = [voting if name == "grouped_head" else AttentionChoice(name) for name in SCHEMES]
    plan = AttentionPlan.of({site: every[turn:] + every[:turn] for turn, site in enumerate(SITES)})
    layers = [f"--{side}-layers={len(every)}" for side in ("encoder", "decoder")]
    return ["--arch=multi_head_transformer", "--attention-plan", plan.dumps(), *layers]


@pytest.fixture(scope="module")
def alone(tiny_translation: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a training on one process, whose updates are of two batches."""
    folder = tmp_path_factory.mktemp("alone") / "one"
    train_on(
        1,
        [str(tiny_translation.folder), *deep(), "--update-freq=2", "--ddp-backend=legacy_ddp"],
        folder,
    )
    return folder


def deep(epochs: int = 3) -> list[str]:
    bleu = ["--eval-bleu", "--eval-bleu-args", '{"beam": 2, "max_len_b": 6}']
    bleu += ["--eval-bleu-detok=space", "--eval-bleu-remove-bpe=sentencepiece"]
    return [
        *TRAINING, *every_scheme(), *bleu, "--vote-at-update=3", "--vote-updates=2",
        "--patience=2", f"--max-epoch={epochs}",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["legacy_ddp", "pytorch_ddp --checkpoint-activations"])
def test_every_scheme_on_two_processes(
    backend: str, alone: Path, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    """Interrupted and resumed, with a vote, BLEU and patience: as one process without a break.

    `no_c10d` and `c10d` are former names of the two backends, which fairseq treats alike.
    """
    more = f"--ddp-backend={backend}".split()
    for epochs in (1, 3) if backend == "legacy_ddp" else (3,):
        train_on(2, [str(tiny_translation.folder), *deep(epochs), *more], tmp_path)
    assert_trained_alike(alone, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fairseq_starts_a_process_for_every_gpu(
    tiny_translation: PreparedData, tmp_path: Path
) -> None:
    """As a search's training with `resources.gpus: 2`: forked, it starts two that are not."""
    flags = [str(tiny_translation.folder), *TRAINING, *ONE_LAYER, *VOTING, "--max-epoch=2"]
    one, two = tmp_path / "one", tmp_path / "two"
    train_on(1, [*flags, "--update-freq=2"], one)
    two.mkdir()
    log = two / "train.log"
    flags += [f"--user-dir={USER_DIR}", f"--save-dir={two}", "--distributed-backend=gloo"]
    with log.open("wb") as open_file:
        training = start(
            flags, log, two / REPORT_FILE, open_file.fileno(), NAS_ATTN_TEST_GPUS="2",
            PYTHONPATH=str(ROOT),
        )  # fmt: skip
        assert wait_for([training]) == [0], log.read_text()[-3000:]
    assert "distributed init (rank 1)" in log.read_text()
    assert_trained_alike(one, two)


@needs_cuda
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["", "--amp", "--fp16"])
def test_two_gpus_train_as_one(
    precision: str, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    """In float32 as exactly as on a CPU, give or take what adding up in any order does."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    flags = [str(tiny_translation.folder), *TRAINING, *ONE_LAYER, *VOTING, "--max-epoch=2"]
    flags += [f"--user-dir={ROOT / 'fairseq_plugin'}", *precision.split()]
    ways = {"one": ["--update-freq=2"], "two": []}
    for number, (name, more) in enumerate(ways.items(), start=1):
        folder = tmp_path / name
        folder.mkdir()
        with (folder / "train.log").open("wb") as log:
            training = start(
                [*flags, *more, f"--distributed-world-size={number}", f"--save-dir={folder}"],
                folder / "train.log", folder / REPORT_FILE, log.fileno(), PYTHONPATH=str(ROOT),
            )  # fmt: skip
            assert wait_for([training]) == [0], (folder / "train.log").read_text()[-3000:]
    one, two = (reported(tmp_path / name) for name in ways)
    assert [line["num_updates"] for line in two] == [line["num_updates"] for line in one]
    assert [line["phase"] for line in two] == ["training", "settled"]
    for mine, other in zip(two, one, strict=True):
        wanted = pytest.approx(other["metrics"]["loss"], rel=0.05 if precision else 1e-3)
        assert mine["metrics"]["loss"] == wanted


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_parameter_gets_a_gradient(scheme: str, tiny_translation: PreparedData) -> None:
    """Else `pytorch_ddp` waits for it, unless told to look for unused parameters."""
    pruned = ["--keep=pillars", "--vote-at-update=1"] if scheme == "grouped_head" else []
    bench = Bench(tiny_translation, f"--criterion={GROUPED}", *pruned, arch=scheme)
    bench.task.begin_epoch(1, bench.model)
    for number in range(2 if pruned else 1):  # the second is after the vote
        bench.update(number, 0, 1, 2)
        without = [
            name
            for name, parameter in bench.model.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        assert without == []
    phases = {int(module.schedule[0]) for module in bench.modules}
    assert phases == ({Phase.SETTLED} if pruned else set())
