"""Group constraint, voting and pruning on stock fairseq: criterions, phases, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fairseq.criterions import CRITERION_REGISTRY
from omegaconf import OmegaConf
from torch import Tensor

from nas_attn.attention.collaborative import CollaborativeAttention
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.grouping import constraint_terms, group_heads
from nas_attn.attention.pruning import Phase
from nas_attn.attention.voting import count_votes
from nas_attn.errors import PlanError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.models import count_architecture
from nas_attn.fairseq_tools.prune import prune_model
from nas_attn.plan import AttentionPlan
from tests.helpers.grouped import GROUPED, LAYERS, Bench, buffers, weights_of
from tests.helpers.training import Steps

pytestmark = [  # fairseq's training step and its loader of batches warn so
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.cuda.amp.autocast:FutureWarning"),
    pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda':UserWarning"),
]


def constraint(bench: Bench) -> Tensor:
    """L_z from the features of the last forward, summed over layers, as released."""
    total = torch.zeros(())
    for module in bench.modules:
        assert module.products is not None
        products = module.products[None]
        within, between = constraint_terms(products, group_heads(products, module.num_groups))
        total = total + module.beta * between.sum() - module.alpha * within.sum()
    return total


@pytest.mark.parametrize("lines", [(0,), (0, 1, 2, 3, 4)])
def test_weight_of_the_constraint(tiny_translation: PreparedData, lines: tuple[int, ...]) -> None:
    """As released it is added once to a sum over tokens; as written it goes with the tokens."""
    flags = (f"--criterion={GROUPED}", "--alpha=0.7", "--beta=0.3")
    plain, added, mean = (
        Bench(tiny_translation, *flags, *more)
        for more in (
            ("--criterion=label_smoothed_cross_entropy",),
            (),
            ("--group-loss=mean",),
        )
    )
    sample = plain.sample(*lines)
    for module in added.modules:
        module.is_recording = True
    added.model.train()
    added.model(**sample["net_input"])
    term = constraint(added)
    tokens = sample["ntokens"]
    base = plain.loss(sample)
    torch.testing.assert_close(added.loss(sample) - base, term, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        mean.loss(sample) - base, term * tokens / LAYERS, rtol=1e-3, atol=1e-2
    )
    assert -LAYERS <= float(term.detach()) <= LAYERS
    # fairseq divides gradients by the tokens: so that of the released constraint shrinks with them.
    gradients = []
    for bench in (plain, added, mean):
        bench.model.zero_grad()
        bench.loss(sample).backward()
        gradients.append(bench.modules[0].v_proj.weight.grad)
    of_added, of_mean = gradients[1] - gradients[0], gradients[2] - gradients[0]
    torch.testing.assert_close(of_mean, of_added * tokens / LAYERS, rtol=1e-2, atol=1e-4)
    assert of_added.abs().max() > 1e-3


def test_no_constraint_outside_training(tiny_translation: PreparedData) -> None:
    plain = Bench(tiny_translation, "--criterion=label_smoothed_cross_entropy")
    grouped = Bench(tiny_translation, f"--criterion={GROUPED}")
    sample = plain.sample(0, 1)
    assert torch.equal(plain.loss(sample, False), grouped.loss(sample, False))
    assert not any(module.is_recording for module in grouped.modules)
    assert sum(p.numel() for p in grouped.model.parameters()) == sum(
        p.numel() for p in plain.model.parameters()
    )


def test_padding_of_targets_reaches_cross_attention(tiny_translation: PreparedData) -> None:
    """More padding leaves the constraint as it is, unless padding is let into the features."""
    terms = []
    for flags in ((), ("--padding-in-features",)):
        bench = Bench(tiny_translation, f"--criterion={GROUPED}", "--feature=output", *flags)
        found = []
        for length in (None, 40):
            sample = bench.data.collater(
                [bench.data[0], bench.data[5]],
                pad_to_length=None if length is None else {"source": length, "target": length},
            )
            for module in bench.modules:
                module.is_recording = True
            bench.model.train()
            bench.model(**sample["net_input"])
            found.append(torch.stack([m.products for m in bench.modules]))  # type: ignore[misc]
        terms.append(found)
    torch.testing.assert_close(*terms[0], rtol=1e-3, atol=1e-3)
    changed = [not torch.allclose(a, b, rtol=1e-2) for a, b in zip(*terms[1], strict=True)]
    assert all(changed)


@pytest.mark.parametrize("trigger", ["epoch", "update", "shift"])
def test_phases(tiny_translation: PreparedData, trigger: str) -> None:
    """Training, a vote in which nothing else moves, then training with the mask, for good."""
    flags = {
        "epoch": "--vote-at-epoch=2",
        "update": "--vote-at-update=3",
        "shift": "--centre-shift=2",
    }
    bench = Bench(
        tiny_translation, f"--criterion={GROUPED}", "--keep=most_votes", "--num-groups=3",
        flags[trigger],
    )  # fmt: skip
    task, model = bench.task, bench.model
    before = {name: value.clone() for name, value in model.named_parameters()}
    batches = len(bench.batches)
    task.begin_epoch(1, model)
    for number in range(3):
        assert trigger == "shift" or bench.criterion.voting.phase == Phase.TRAINING
        bench.update(number, number)
    dice = torch.random.get_rng_state()
    task.begin_epoch(2, model)
    assert torch.equal(dice, torch.random.get_rng_state()), "the vote draws for itself"
    assert bench.criterion.voting.phase == Phase.SETTLED
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    for module in bench.modules:
        assert module.products is None
        assert int(module.votes.sum()) == batches * 3
        assert module.together.diagonal().tolist() == [batches] * 8
        assert module.schedule.tolist() == [Phase.SETTLED, 2 if trigger == "epoch" else 1, batches]
    masks = [module.kept.clone() for module in bench.modules]
    assert [int(mask.sum()) for mask in masks] == [3] * LAYERS
    sample = bench.sample(0, 1)
    plain = Bench(tiny_translation, "--criterion=label_smoothed_cross_entropy")
    plain.model.load_state_dict(model.state_dict())
    assert torch.equal(plain.loss(sample), bench.loss(sample)), "the constraint is over"
    bench.update(3, 0)
    task.begin_epoch(3, model)
    assert bench.stepped == 4
    for module, mask in zip(bench.modules, masks, strict=True):
        assert torch.equal(module.kept, mask)


@pytest.mark.parametrize(("frequency", "batches"), [("1", 2), ("3", 6), ("1,5", 10)])
def test_a_short_vote(tiny_translation: PreparedData, frequency: str, batches: int) -> None:
    """As many batches as two updates of the second epoch take."""
    bench = Bench(
        tiny_translation, f"--criterion={GROUPED}", "--keep=pillars", "--vote-at-epoch=2",
        "--vote-updates=2", f"--update-freq={frequency}",
    )  # fmt: skip
    bench.task.begin_epoch(2, bench.model)
    assert all(int(module.votes.sum()) == 2 * batches for module in bench.modules)
    assert all(int(module.kept.sum()) == 2 for module in bench.modules)


def test_a_vote_on_more_than_an_epoch(tiny_translation: PreparedData) -> None:
    bench = Bench(
        tiny_translation, f"--criterion={GROUPED}", "--keep=pillars", "--vote-at-epoch=1",
        "--vote-updates=50",
    )  # fmt: skip
    assert len(bench.batches) < 50
    bench.task.begin_epoch(1, bench.model)
    assert all(int(module.votes.sum()) == 2 * 50 for module in bench.modules)


def test_what_fills_a_worker_does_not_vote(tiny_translation: PreparedData) -> None:
    """With more workers than batches the last ones have none, and run as many as the others."""
    shares, ran = [], []
    for worker in (0, 15):
        bench = Bench(
            tiny_translation, f"--criterion={GROUPED}", "--keep=pillars", "--vote-at-epoch=1"
        )
        assert 1 < len(bench.batches) < 16
        bench.ask_for_batches(num_shards=16, shard_id=worker)
        real_step = bench.task.train_step
        bench.task.train_step = lambda *args, real=real_step: ran.append(1) or real(*args)
        bench.task.begin_epoch(1, bench.model)
        shares.append([int(module.votes.sum()) for module in bench.modules])
        voted = 1 if worker == 0 else 0
        assert {int(module.schedule[2]) for module in bench.modules} == {voted}
    assert shares == [[2] * LAYERS, [0] * LAYERS]
    assert len(ran) == 2


@pytest.mark.parametrize("phase", [Phase.READY, Phase.VOTING])
def test_a_vote_of_old_is_held_anew(tiny_translation: PreparedData, phase: Phase) -> None:
    """Version 0.1 saved checkpoints before and inside a vote that had begun."""
    bench = Bench(
        tiny_translation, f"--criterion={GROUPED}", "--keep=pillars", "--vote-at-update=2"
    )
    state = bench.model.state_dict()
    for name, value in state.items():
        if name.endswith("schedule"):
            value.copy_(torch.tensor([phase, 1, 2]))
        elif name.endswith("votes") and phase == Phase.VOTING:
            value.copy_(torch.tensor([2, 2, 0, 0, 0, 0, 0, 0]))
    bench.model.load_state_dict(state)
    bench.task.begin_epoch(2, bench.model)
    for module in bench.modules:
        assert int(module.votes.sum()) == 2 * len(bench.batches)
        assert int(module.kept.sum()) == 2


def test_a_criterion_of_old_is_built(tiny_translation: PreparedData) -> None:
    """As fairseq-validate builds it: a checkpoint of version 0.1 says nothing of update_freq."""
    bench = Bench(tiny_translation, f"--criterion={GROUPED}", "--update-freq=3")
    config = {name: value for name, value in bench.config.items() if name != "update_freq"}
    built = bench.task.build_criterion(OmegaConf.create(config))
    assert (bench.criterion.voting.update_freq, built.voting.update_freq) == ((3,), (1,))


def test_the_best_before_pruning_is_forgotten(tiny_translation: PreparedData) -> None:
    from fairseq import checkpoint_utils

    checkpoint_utils.save_checkpoint.best = 1.0
    bench = Bench(tiny_translation, f"--criterion={GROUPED}", "--keep=pillars", "--vote-at-epoch=2")
    bench.task.begin_epoch(1, bench.model)
    bench.update(0, 0)
    assert checkpoint_utils.save_checkpoint.best == 1.0
    bench.task.begin_epoch(2, bench.model)
    assert not hasattr(checkpoint_utils.save_checkpoint, "best")


VOTES = [
    ("--max-epoch=3", ["--vote-at-epoch=2"]),
    ("--max-epoch=3", ["--vote-at-update=3", "--vote-updates=2"]),
    ("--max-update=7", ["--vote-at-update=3"]),
    ("--max-update=7", ["--centre-shift=2", "--vote-updates=2", "--update-freq=2"]),
]


@pytest.mark.parametrize(("end", "vote"), VOTES)
def test_a_vote_takes_no_step(
    tiny_translation: PreparedData, tmp_path: Path, end: str, vote: list[str]
) -> None:
    """With it and without: as many steps that change weights, at the same learning rates."""
    without, having = Steps(), Steps()
    more = [flag for flag in vote if flag.startswith("--update-freq")]
    plain = without.train(tiny_translation, tmp_path / "plain", end, *more)
    voted = having.train(tiny_translation, tmp_path / "voted", end, "--keep=pillars", *vote)
    assert [sum(kept) for kept in buffers(voted["model"], "kept")] == [2] * LAYERS
    assert having.begun > without.begun, "it runs batches of its own"
    assert len(without.rates) >= 7
    assert all(without.changed) and all(having.changed)
    assert having.rates == without.rates
    updates = [state["optimizer_history"][-1]["num_updates"] for state in (plain, voted)]
    assert updates == [len(without.rates)] * 2
    iterators = [state["extra_state"]["train_iterator"] for state in (plain, voted)]
    assert iterators[0] == iterators[1]


@pytest.mark.parametrize("trigger", ["--vote-at-epoch=2", "--vote-at-update=6"])
def test_a_vote_cut_off_is_held_again(
    tiny_translation: PreparedData, tmp_path: Path, trigger: str
) -> None:
    """A training that dies inside the vote ends with the very weights of one that did not."""
    flags = ["--max-update=8", "--keep=threshold", "--vote-threshold=0.5", trigger]
    flags += ["--save-interval-updates=3"]
    unbroken = Steps().train(tiny_translation, tmp_path / "unbroken", *flags)["model"]
    ballots = []

    def die(modules: list[GroupedHeadAttention]) -> None:
        ballots.append(modules)
        if len(ballots) == 3:
            raise KeyboardInterrupt
        count_votes(modules)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fairseq_plugin.criterions.count_votes", die)
        Steps().train(tiny_translation, tmp_path / "broken", *flags)
    left = weights_of(tmp_path / "broken" / "checkpoint_last.pt")
    assert not any(any(votes) for votes in buffers(left, "votes"))
    resumed = Steps().train(tiny_translation, tmp_path / "broken", *flags)["model"]
    assert min(sum(kept) for kept in buffers(resumed, "kept")) < 8
    for name, expected in unbroken.items():
        assert torch.equal(resumed[name], expected), name


def test_pruning_without_a_time_is_refused(tiny_translation: PreparedData) -> None:
    bench = Bench(tiny_translation, f"--criterion={GROUPED}", "--keep=pillars")
    with pytest.raises(PlanError, match="nothing says when: give --vote-at-epoch"):
        bench.task.begin_epoch(1, bench.model)


def test_a_plan_that_prunes_nothing_has_no_vote(tiny_translation: PreparedData) -> None:
    """As the baseline of a study whose other plans prune."""
    bench = Bench(tiny_translation, f"--criterion={GROUPED}", "--vote-at-epoch=1")
    for epoch in (1, 2):
        bench.task.begin_epoch(epoch, bench.model)
        bench.update(epoch - 1, 0)
    assert bench.stepped == 2
    assert bench.criterion.voting.phase == Phase.TRAINING


def test_shared_dimensions_are_pruned_at_the_vote(tiny_translation: PreparedData) -> None:
    bench = Bench(
        tiny_translation, f"--criterion={GROUPED}", "--dim-threshold=0.5", "--shared-dim=16",
        "--vote-at-update=1", arch="collaborative",
    )  # fmt: skip
    bench.task.begin_epoch(1, bench.model)
    bench.update(0, 0)
    modules = [m for m in bench.model.modules() if isinstance(m, CollaborativeAttention)]
    left = [int(module.kept.sum()) for module in modules]
    assert min(left) < 16
    assert {int(module.schedule[2]) for module in modules} == {0}, "weights tell without a batch"
    plan = AttentionPlan.of({})
    for site in ("encoder_self", "decoder_self", "encoder_decoder"):
        plan = AttentionPlan.parse(
            json.dumps({site: {"scheme": "collaborative", "shared_dim": 16, "dim_threshold": 0.5}})
        ).over(plan)
    pruned, weights, parts = prune_model(plan, bench.model.state_dict())
    assert sorted(kept for kept, _ in parts.values()) == sorted(left)
    small = Bench(
        tiny_translation, f"--criterion={GROUPED}", "--attention-plan", pruned.dumps(),
        arch="multi_head",
    )  # fmt: skip
    small.model.load_state_dict(weights)
    sample = bench.sample(0, 1)
    torch.testing.assert_close(small.loss(sample, False), bench.loss(sample, False))


def test_every_criterion_of_fairseq_has_a_grouped_one() -> None:
    for name in ("label_smoothed_cross_entropy", "cross_entropy", "adaptive_loss", "masked_lm"):
        assert f"grouped_{name}" in CRITERION_REGISTRY


def test_counts_and_operations_of_the_paper() -> None:
    """Base Transformer of the paper (Ni et al. 2023); embeddings and biases as it counts them."""
    flags = ["--share-decoder-input-output-embed"]

    def count(*more: str) -> int:
        arch = "grouped_head_transformer"
        return count_architecture(arch, 8848, 6632, [*flags, *more]).non_embedding

    assert count() == 44_138_496
    assert count("--kept-heads=2") == 29_961_984
    assert count("--kept-heads=4") == 34_687_488
    total = count_architecture("grouped_head_transformer", 8848, 6632, [*flags, "--kept-heads=2"])
    assert total.total == 37_887_744
    iwslt = count_architecture(
        "grouped_head_transformer_iwslt_de_en", 8848, 6632, [*flags, "--kept-heads=3"]
    )
    assert iwslt.total == 34_743_552


def million_operations(
    width: int = 512, ffn: int = 2048, heads: int = 8, depth: int = 6, shared_dim: int = 0
) -> float:
    """Multiply-adds of a Transformer for 30 source and target tokens (Ni et al. 2023)."""
    head_width = width // 8 if width != 1024 else 64
    attention = 4 * width * heads * head_width
    products = 2 * heads * head_width
    if shared_dim:
        attention = 2 * width * shared_dim + 2 * width * heads * head_width
        products = heads * shared_dim + heads * head_width
    weights = 3 * depth * attention + 2 * depth * 2 * width * ffn
    return (30 * weights + 900 * products * 3 * depth + 30 * width * 42_852) / 1e6


def test_operations_of_the_paper() -> None:
    assert million_operations() == pytest.approx(1996, abs=1)
    assert million_operations(heads=2) == pytest.approx(1558, abs=1)
    assert million_operations(depth=4) == pytest.approx(1549, abs=1.2)
    assert million_operations(width=424, ffn=1696) == pytest.approx(1465, abs=1)
    assert million_operations(shared_dim=512) == pytest.approx(2054, abs=1)
    assert million_operations(heads=2, ffn=1024) == pytest.approx(1181, abs=1)
    assert million_operations(width=1024, ffn=4096, heads=16) == pytest.approx(6635, abs=1)
