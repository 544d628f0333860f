"""Votes from training to a smaller checkpoint, and on models that are trained already."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nas_attn.attention import build_attention
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.pruning import Phase
from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.prune import load_checkpoint, prune_checkpoint, prune_model
from nas_attn.fairseq_tools.run_fairseq import run_fairseq
from nas_attn.fairseq_tools.vote import refit_output, vote_on_data
from nas_attn.plan import AttentionPlan
from tests.helpers.forked import fork_server
from tests.helpers.grouped import GROUPED, LAYERS, SMALL, TRAINING, Bench, buffers, weights_of

pytestmark = [  # fairseq's training step and its loader of batches warn so
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.cuda.amp.autocast:FutureWarning"),
    pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda':UserWarning"),
]


def train(data: PreparedData, folder: Path, *flags: str) -> str:
    done = run_fairseq(
        "train",
        [
            str(data.folder), "--arch=grouped_head_transformer", f"--criterion={GROUPED}", *SMALL,
            *TRAINING, "--dropout=0.1", "--keep=pillars", "--vote-at-epoch=2", "--max-epoch=4",
            f"--save-dir={folder}", *flags,
        ],
        folder / "train.log",
        launcher=fork_server(),
    )  # fmt: skip
    assert done.status == 0, done.output[-3000:]
    return done.output


def average(models: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """As fairseq's script averages: sums, whole numbers divided as such."""
    sums = {name: sum(model[name] for model in models) for name in models[0]}
    return {
        name: total / len(models) if total.is_floating_point() else total // len(models)
        for name, total in sums.items()
        if isinstance(total, Tensor)
    }


@pytest.fixture(scope="module")
def unbroken(tiny_translation: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole training, with a checkpoint for each epoch."""
    folder = tmp_path_factory.mktemp("grouped") / "unbroken"
    train(tiny_translation, folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_to_a_smaller_checkpoint(
    tiny_translation: PreparedData, unbroken: Path, tmp_path: Path
) -> None:
    """Unbroken and interrupted in the vote and after it: one result; pruned: the same outputs."""
    output = (unbroken / "train.log").read_text()
    logs = [json.loads(found) for found in re.findall(r"\| train \| (\{.*\})", output)]
    constrained = [log["train_group_within"] is not None for log in logs]
    assert constrained == [True, False, False, False]
    steps = [int(log["train_num_updates"]) for log in logs]
    assert steps == [steps[0] * epoch for epoch in range(1, 5)]
    assert "of each attention module stay [2, 2, 2, 2, 2, 2]" in output
    one, two, three, four = (
        weights_of(unbroken / f"checkpoint{epoch}.pt") for epoch in range(1, 5)
    )
    settled = [schedule[0] == Phase.SETTLED for schedule in buffers(two, "schedule")]
    assert not any(schedule[0] for schedule in buffers(one, "schedule")) and all(settled)
    assert buffers(three, "kept") == buffers(four, "kept")
    assert [sum(kept) for kept in buffers(four, "kept")] == [2] * LAYERS
    assert buffers(average([three, four]), "kept") == buffers(four, "kept")

    broken = tmp_path / "broken"
    for stop in (steps[0], steps[1] + 1):  # just before the vote, and after it
        train(tiny_translation, broken, f"--max-update={stop}")
    train(tiny_translation, broken)
    resumed = weights_of(broken / "checkpoint4.pt")
    for name, expected in four.items():
        assert torch.equal(resumed[name], expected), name

    small = tmp_path / "small.pt"
    best = unbroken / "checkpoint_best.pt"
    pruned = prune_checkpoint(best, small)
    assert set(pruned.parts.values()) == {(2, 8)}
    removed = LAYERS * 6 * (4 * 32 * 4 + 3 * 4)
    assert pruned.parameters[0] - pruned.parameters[1] == removed
    assert small.stat().st_size < best.stat().st_size
    outputs = []
    for checkpoint in (best, small):
        arguments = [str(tiny_translation.folder), f"--path={checkpoint}", "--beam=3"]
        arguments += ["--required-batch-size-multiple=1"]
        done = run_fairseq(
            "generate",
            [*arguments, "--max-len-b=12"],
            tmp_path / "generate.log",
            launcher=fork_server(),
        )
        assert done.status == 0, done.output[-3000:]
        outputs.append(re.findall(r"^D-.*$", done.output, re.MULTILINE))
    assert [line.split("\t")[2] for line in outputs[0]] == [
        line.split("\t")[2] for line in outputs[1]
    ]
    assert len(outputs[0]) == 61

    with pytest.raises(NasAttnError, match=r"the vote is not over \(training\)"):
        prune_checkpoint(unbroken / "checkpoint1.pt", tmp_path / "no.pt")
    with pytest.raises(NasAttnError, match="there is no checkpoint"):
        prune_checkpoint(tmp_path / "absent.pt", tmp_path / "no.pt")
    assert not (tmp_path / "no.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "side", "task", "criterion"),
    [
        ("transformer_lm", "decoder", "language_modeling", "grouped_adaptive_loss"),
        ("roberta", "encoder", "masked_lm", "grouped_masked_lm"),
    ],
)
def test_other_tasks(
    model: str, side: str, task: str, criterion: str, tiny_language: PreparedData, tmp_path: Path
) -> None:
    """Constraint, vote and pruning with the loss of any task, in the authors' weight and mean."""
    flags = [str(tiny_language.folder), f"--arch=grouped_head_{model}", f"--task={task}"]
    flags += [f"--criterion={criterion}", f"--{side}-layers=2", f"--{side}-embed-dim=32"]
    flags += [f"--{side}-ffn-embed-dim=32", f"--{side}-attention-heads=4", "--group-loss=mean"]
    flags += ["--tokens-per-sample=32", "--keep=threshold", "--vote-threshold=0.5"]
    flags += ["--feature=attention", "--metric=cosine", "--vote-at-update=3", "--vote-updates=3"]
    if criterion == "grouped_adaptive_loss":
        flags += ["--adaptive-softmax-cutoff=20,40", "--adaptive-input", "--ddp-backend=legacy_ddp"]
        flags += ["--adaptive-input-cutoff=20,40", f"--{side}-input-dim=32"]
    last = tmp_path / "checkpoint_last.pt"
    flags += [*TRAINING, "--max-update=9", f"--save-dir={tmp_path}", "--no-epoch-checkpoints"]
    done = run_fairseq("train", flags, tmp_path / "train.log", launcher=fork_server())
    assert done.status == 0, done.output[-3000:]
    assert "group_within" in done.output
    assert Phase(buffers(weights_of(last), "schedule")[0][0]) == Phase.SETTLED
    pruned = prune_checkpoint(last, tmp_path / "small.pt")
    assert sorted(pruned.parts) == [f"{side}_self.0", f"{side}_self.1"]


@pytest.mark.slow
def test_voting_on_a_trained_model(
    tiny_translation: PreparedData, unbroken: Path, tmp_path: Path
) -> None:
    """Without training: refitted output projections stay nearer to what all heads gave."""
    trained, data = unbroken / "checkpoint1.pt", tiny_translation.folder
    whole, small, refitted = (
        Bench(tiny_translation, "--criterion=cross_entropy", "--attention-plan", plan.dumps())
        for plan in (
            AttentionPlan.parse(load_checkpoint(trained)["cfg"]["model"].attention_plan),
            *(
                prune_checkpoint(
                    trained,
                    tmp_path / f"{refit}.pt",
                    vote_on_data(trained, data, {"keep": "pillars", "num_groups": 3}, refit=refit),
                ).plan
                for refit in (False, True)
            ),
        )
    )
    paths = (trained, tmp_path / "False.pt", tmp_path / "True.pt")
    for bench, path in zip((whole, small, refitted), paths, strict=True):
        bench.model.load_state_dict(weights_of(path))
        bench.model.eval()
    assert {module.num_heads for module in refitted.modules} == {3}
    assert torch.equal(small.modules[0].v_proj.weight, refitted.modules[0].v_proj.weight)
    sample = whole.sample(*range(20))
    with torch.no_grad():
        outputs = [bench.model(**sample["net_input"])[0] for bench in (whole, small, refitted)]
    far, near = ((output - outputs[0]).norm() for output in outputs[1:])
    assert near < 0.8 * far
    with pytest.raises(NasAttnError, match="has voted already"):
        vote_on_data(unbroken / "checkpoint_best.pt", data, {}, refit=False)


def test_refitting_is_least_squares() -> None:
    torch.manual_seed(2)
    module = build_attention("grouped_head", 16, 4).double()
    assert isinstance(module, GroupedHeadAttention)
    module.kept.copy_(torch.tensor([1, 0, 1, 1]))
    inputs = torch.randn(200, 16, dtype=torch.double) @ torch.randn(16, 16, dtype=torch.double)
    nn.init.normal_(module.out_proj.bias)
    with torch.no_grad():
        wanted = module.out_proj(inputs)
    ones = torch.cat([inputs, torch.ones(200, 1, dtype=torch.double)], dim=1)
    refit_output(module, ones.t() @ ones)
    columns = module.kept.repeat_interleave(4).bool()
    left = torch.cat([inputs[:, columns], ones[:, -1:]], dim=1)
    solved = torch.linalg.lstsq(left, wanted).solution
    with torch.no_grad():
        found = module.out_proj(inputs * columns)
    torch.testing.assert_close(found, left @ solved, rtol=1e-3, atol=1e-3)


def test_a_model_without_pruning_is_refused(tiny_translation: PreparedData) -> None:
    bench = Bench(tiny_translation, f"--criterion={GROUPED}", arch="multi_head")
    plan = AttentionPlan.parse('{"encoder_self": "multi_head", "decoder_self": "multi_head", '
                               '"encoder_decoder": "multi_head"}')  # fmt: skip
    with pytest.raises(NasAttnError, match="no scheme of its plan prunes"):
        prune_model(plan, bench.model.state_dict())
    assert isinstance(bench.model, nn.Module)
