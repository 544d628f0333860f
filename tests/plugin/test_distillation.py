"""Criterions with a teacher: their loss, what they leave alone, and which teachers they refuse."""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import tasks
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf
from torch import Tensor

from fairseq_plugin import distillation
from fairseq_plugin.distillation import divergence
from fairseq_plugin.teacher import Teacher
from nas_attn.attention.pruning import Phase
from nas_attn.errors import UsageError
from nas_attn.fairseq_tools import flags as known
from nas_attn.fairseq_tools.data import PreparedData
from tests.helpers.checkpoints import arguments_of, state_of
from tests.helpers.devices import devices
from tests.helpers.grouped import SMALL, TRAINING, Bench, weights_of
from tests.helpers.ranks import train_on
from tests.helpers.training import Steps

pytestmark = [  # fairseq's training step and its loader of batches warn so
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.cuda.amp.autocast:FutureWarning"),
    pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda':UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla:UserWarning"),
]

SMOOTHED = "label_smoothed_cross_entropy"
PLAIN = [f"--criterion={SMOOTHED}", "--label-smoothing=0.1"]
TAUGHT = [f"--criterion=distilled_{SMOOTHED}", "--label-smoothing=0.1"]
TINY = [
    f"--{side}-{name}={size}" for side in ("encoder", "decoder")
    for name, size in (("layers", 1), ("embed-dim", 8), ("ffn-embed-dim", 8),
                       ("attention-heads", 2))
]  # fmt: skip
LINES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_translation: PreparedData) -> Path:
    """A checkpoint of a model of the size of `Bench`, far from its start."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    more = ["--dropout=0.3", "--decoder-layerdrop=0.2", "--checkpoint-activations"]
    save_trained(path, tiny_translation.folder, "multi_head_transformer", flags=[*SMALL, *more])
    return path


def save_trained(path: Path, data: Path, arch: str, **named: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hydra
        torch.save(state_of(data, arch, **named), path)


@pytest.fixture(scope="module")
def made(tiny_translation: PreparedData, teacher: Path) -> Bench:
    flags = [*TAUGHT, "--teacher", str(teacher), "--teacher-weight=1"]
    return Bench(tiny_translation, *flags, arch="multi_head")


@pytest.fixture
def bench(made: Bench) -> Bench:
    """One with a model of its own; building a task takes its time."""
    bench = copy.copy(made)
    bench.model, bench.criterion = copy.deepcopy(made.model), copy.copy(made.criterion)
    return bench


def with_teacher(bench: Bench, path: Path | None) -> Teacher:
    bench.criterion.teacher = Teacher(None if path is None else str(path), bench.task)
    teacher: Teacher = bench.criterion.teacher
    return teacher


def gradients(bench: Bench, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(bench.model.parameters())))


def naive(bench: Bench, teacher: Path, sample: Any, weight: float, temperature: float) -> Tensor:
    """The loss as its definition has it, token by token."""
    taught = copy.deepcopy(bench.model).eval()
    taught.load_state_dict(torch.load(teacher, weights_only=True)["model"])
    student = bench.model(**sample["net_input"])[0]
    with torch.no_grad():
        others = taught(**sample["net_input"])[0]
    total = torch.zeros((), dtype=torch.float64)
    types = student.size(-1)
    for logits, their, target in zip(
        student.flatten(0, 1), others.flatten(0, 1), sample["target"].flatten(), strict=True
    ):
        if target == 1:  # padding
            continue
        log_p = logits - logits.exp().sum().log()
        rest = 0.1 / (types - 1)
        own = -((1 - 0.1 - rest) * log_p[target] + rest * log_p.sum())
        ours, theirs = ((x / temperature).exp() for x in (logits, their))
        q, p = ours / ours.sum(), theirs / theirs.sum()
        kl = (p * (p.log() - q.log())).sum()
        total = total + (1 - weight) * own + weight * temperature**2 * kl
    return total


@pytest.mark.parametrize(
    ("weight", "temperature", "digits"),
    [(1.0, 1.0, 1e-9), (1.0, 2.5, 1e-9), (0.3, 2.0, 1e-5)],  # fairseq's own part is in float32
)
def test_loss_and_gradients(
    bench: Bench, teacher: Path, weight: float, temperature: float, digits: float
) -> None:
    bench.criterion.teacher_weight = weight
    bench.criterion.teacher_temperature = temperature
    with_teacher(bench, teacher)
    bench.model.double()
    sample = bench.sample(*LINES)
    assert (sample["target"] == 1).any(), "some of the batch is padding"
    found = bench.loss(sample)
    expected = naive(bench, teacher, sample, weight, temperature)
    torch.testing.assert_close(found, expected, rtol=digits, atol=digits)
    for mine, other in zip(gradients(bench, found), gradients(bench, expected), strict=True):
        torch.testing.assert_close(mine, other, rtol=digits, atol=digits)


def test_the_divergence_has_its_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    ours, theirs = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64) * 3
    ours.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: divergence(x, theirs, 2.5), (ours,))
    assert float(divergence(theirs, theirs, 2.5)) == pytest.approx(0, abs=1e-12)


def test_a_student_that_is_its_teacher_learns_nothing(bench: Bench, teacher: Path) -> None:
    sample = bench.sample(*LINES)
    before = gradients(bench, bench.loss(sample))
    assert max(float(grad.abs().max()) for grad in before) > 0.1
    bench.model.load_state_dict(torch.load(teacher, weights_only=True)["model"])
    loss = bench.loss(sample)
    assert abs(float(loss.detach())) < 1e-4
    assert all(float(grad.abs().max()) < 1e-4 for grad in gradients(bench, loss))


def test_a_validation_needs_no_teacher(bench: Bench) -> None:
    plain = CRITERION_REGISTRY[SMOOTHED](bench.task, sentence_avg=False, label_smoothing=0.1)
    sample = bench.sample(*LINES)
    nobody = with_teacher(bench, None)
    found = bench.loss(sample, False)
    assert torch.equal(found, plain(bench.model, sample)[0])
    with pytest.raises(UsageError, match="there is none: give --teacher"):
        nobody.meet(bench.model)
    with pytest.raises(UsageError, match="there is none: give --teacher"):
        bench.loss(sample)


def test_the_teacher_is_no_part_of_the_criterion(made: Bench) -> None:
    """It is there once training begins; nothing is drawn for it."""
    before = torch.get_rng_state()
    made.criterion.teacher = teacher = Teacher(made.config.teacher, made.task)
    made.loss(made.sample(*LINES))
    model = teacher._model
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not list(made.criterion.parameters())
    assert made.criterion.state_dict() == {}
    assert set(made.criterion.modules()) == {made.criterion}
    assert torch.equal(torch.get_rng_state(), before)


def test_tokens_that_the_criterion_leaves_out_are_not_taught(bench: Bench) -> None:
    sample = bench.sample(*LINES)
    whole = bench.loss(sample)
    bench.criterion.ignore_prefix_size = 2
    without = bench.loss(sample)
    bench.criterion.ignore_prefix_size = 0
    sample["target"][:, :2] = 1
    torch.testing.assert_close(without, bench.loss(sample))
    assert without < whole


def test_activations_may_be_computed_again(
    bench: Bench, tiny_translation: PreparedData, teacher: Path
) -> None:
    flags = [*TAUGHT, "--teacher", str(teacher), "--teacher-weight=1", "--checkpoint-activations"]
    again = Bench(tiny_translation, *flags, arch="multi_head")
    sample = bench.sample(*LINES)
    for each in (bench, again):
        each.loss(sample).backward()
    for mine, other in zip(bench.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@devices
@pytest.mark.parametrize("way", ["float16", "bfloat16", "autocast"])
def test_precision(bench: Bench, teacher: Path, way: str, device: str) -> None:
    """The teacher has the student's, and the loss is near that of float32."""
    taught = with_teacher(bench, teacher)
    bench.model.to(device)
    sample = bench.sample(*LINES)
    inputs = {name: tensor.to(device) for name, tensor in sample["net_input"].items()}
    sample = {**sample, "net_input": inputs, "target": sample["target"].to(device)}
    expected = float(bench.loss(sample).detach())
    if way != "autocast":
        bench.model.to(getattr(torch, way))
    with torch.autocast(device, torch.bfloat16, enabled=way == "autocast"):
        loss = bench.loss(sample)
    loss.backward()
    own, like = next(taught._model.parameters()), next(bench.model.parameters())
    assert (own.dtype, own.device) == (like.dtype, like.device)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(expected, rel=0.05)
    assert all(p.grad is None or p.grad.isfinite().all() for p in bench.model.parameters())


OTHERS = [
    ("language_modeling", "transformer_lm", "cross_entropy", "decoder", []),
    ("masked_lm", "roberta", "masked_lm", "encoder", ["--mask-prob=0.4"]),
]


def task_of(data: Path, arch: str, task: str, flags: list[str]) -> tuple[Any, Any, Any]:
    """Task, model and criterion of a training."""
    args = arguments_of(arch, task, flags)
    args.data = str(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hydra
        config = convert_namespace_to_omegaconf(args)
    made = tasks.setup_task(config.task)
    return made, made.build_model(config.model), made.build_criterion(config.criterion)


@pytest.mark.parametrize(("task", "model", "criterion", "side", "more"), OTHERS)
def test_other_tasks(
    tiny_language: PreparedData, tmp_path: Path, task: str, model: str, criterion: str, side: str,
    more: list[str],
) -> None:  # fmt: skip
    """fairseq's own model teaches one of ours; RoBERTa alone is asked about what is masked."""
    sizes = [*(flag for flag in TINY if side in flag), "--tokens-per-sample=32", *more]
    save_trained(tmp_path / "teacher.pt", tiny_language.folder, model, task=task, flags=sizes)
    flags = [*sizes, f"--criterion=distilled_{criterion}", f"--teacher={tmp_path / 'teacher.pt'}"]
    found, student, judge = task_of(
        tiny_language.folder, f"multi_query_{model}", f"reported_{task}", [*flags, "--dropout=0"]
    )
    found.load_dataset("train")
    data = found.dataset("train")
    sample = data.collater([data[0], data[1], data[2]])
    student.train()
    loss, _, log = judge(student, sample)
    loss.backward()
    assert log["teacher_tokens"] == int((sample["target"] != found.dictionary.pad()).sum())
    assert float(log["teacher_kl"]) > 0
    halves = 0.5 * log["loss"] + 0.5 * log["teacher_kl"]
    torch.testing.assert_close(loss.detach(), halves)


def test_there_is_one_for_each(tiny_translation: PreparedData) -> None:
    assert distillation.TAUGHT == known.TAUGHT
    for name in known.TAUGHT:
        assert {f"distilled_{name}", f"grouped_distilled_{name}"} <= CRITERION_REGISTRY.keys()


def test_a_vote_asks_no_teacher(
    tiny_translation: PreparedData, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [f"--criterion=grouped_distilled_{SMOOTHED}", f"--teacher={teacher}"]
    bench = Bench(tiny_translation, *flags, "--vote-at-update=1", "--keep=pillars")
    asked: list[Phase] = []
    ask = Teacher.__call__

    def noted(self: Teacher, *args: Any, **named: Any) -> Tensor:
        asked.append(bench.criterion.voting.phase)
        return ask(self, *args, **named)

    monkeypatch.setattr(Teacher, "__call__", noted)
    bench.task.begin_epoch(1, bench.model)
    bench.update(0, *LINES)
    assert bench.criterion.voting.phase == Phase.SETTLED
    bench.update(1, *LINES)
    assert asked == [Phase.TRAINING, Phase.SETTLED]


def test_a_weight_of_0_is_the_criterion_itself(
    tiny_translation: PreparedData, teacher: Path, tmp_path: Path
) -> None:
    """To the last digit, and nothing but the settings tells the checkpoints apart."""
    more = ["--arch=multi_head_transformer", "--max-update=3"]
    plain = Steps().train(tiny_translation, tmp_path / "plain", *more, *PLAIN)
    named = ["--teacher", str(teacher), "--teacher-weight=0"]
    taught = Steps().train(tiny_translation, tmp_path / "taught", *more, *TAUGHT, *named)
    assert taught["model"].keys() == plain["model"].keys()
    assert all(tensor.equal(taught["model"][name]) for name, tensor in plain["model"].items())
    assert taught["criterion"] is None
    size = (tmp_path / "plain" / "checkpoint_last.pt").stat().st_size
    assert (tmp_path / "taught" / "checkpoint_last.pt").stat().st_size < size + 4000
    assert taught["extra_state"]["val_loss"] == plain["extra_state"]["val_loss"]


@pytest.mark.slow
def test_a_training_goes_on_as_an_unbroken_one(
    tiny_translation: PreparedData, teacher: Path, tmp_path: Path
) -> None:
    more = ["--arch=multi_head_transformer", *TAUGHT, "--teacher", str(teacher)]
    whole = Steps().train(tiny_translation, tmp_path / "whole", *more, "--max-epoch=2")
    Steps().train(tiny_translation, tmp_path / "broken", *more, "--max-epoch=1")
    broken = Steps().train(tiny_translation, tmp_path / "broken", *more, "--max-epoch=2")
    assert all(tensor.equal(broken["model"][name]) for name, tensor in whole["model"].items())
    plain = Steps().train(tiny_translation, tmp_path / "plain", more[0], *PLAIN, "--max-epoch=2")
    assert any(not t.equal(plain["model"][name]) for name, t in whole["model"].items())


@pytest.mark.slow
def test_two_processes_are_as_one_with_more_batches(
    tiny_translation: PreparedData, teacher: Path, tmp_path: Path
) -> None:
    flags = [str(tiny_translation.folder), "--arch=multi_head_transformer", *SMALL, *TRAINING]
    flags += [*TAUGHT, "--teacher", str(teacher), "--max-epoch=1", "--dropout=0"]
    flags += ["--ddp-backend=legacy_ddp", "--no-epoch-checkpoints"]
    flags += ["--task=reported_translation"]
    alone = train_on(1, [*flags, "--update-freq=2"], tmp_path / "one")
    both = train_on(2, flags, tmp_path / "two")
    logged = []
    for output in (alone[0], both[0]):
        line = next(line for line in output.splitlines() if "| train | {" in line)
        logged.append(json.loads(line[line.index("{") :]))
    for name in ("train_loss", "train_teacher_kl"):
        assert float(logged[1][name]) == pytest.approx(float(logged[0][name]), abs=2e-3)
    assert float(logged[0]["train_teacher_kl"]) > 0.01
    one, two = (weights_of(tmp_path / name / "checkpoint_last.pt") for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one
               if not name.endswith("k_proj.bias")) < 1e-3  # fmt: skip


def _other_types(state: dict[str, Any], folder: Path) -> None:
    name = "encoder.embed_tokens.weight"
    for place in (name, name.replace("encoder", "decoder"), "decoder.output_projection.weight"):
        state["model"][place] = torch.cat([state["model"][place], state["model"][name][:3]])


def _other_words(state: dict[str, Any], folder: Path) -> None:
    for name in ("src", "tgt"):
        path = Path(state["cfg"]["task"]["data"]) / f"dict.{name}.txt"
        lines = path.read_text().splitlines()
        lines[5], lines[6] = lines[6], lines[5]
        (folder / path.name).write_text("\n".join(lines) + "\n")
    state["cfg"]["task"]["data"] = "."  # as in a checkpoint that was exported


def _other_task(state: dict[str, Any], folder: Path) -> None:
    state["cfg"]["task"]["_name"] = "reported_masked_lm"


def _other_languages(state: dict[str, Any], folder: Path) -> None:
    state["cfg"]["task"] |= {"source_lang": "tgt", "target_lang": "src"}


def _code(state: dict[str, Any], folder: Path) -> None:
    state["cfg"]["model"].adaptive_softmax_cutoff = "exit()"


def _too_short(state: dict[str, Any], folder: Path) -> None:
    state["cfg"]["model"].max_target_positions = 20


def _no_weights(state: dict[str, Any], folder: Path) -> None:
    del state["model"]["decoder.layers.0.fc1.weight"]


def _no_model(state: dict[str, Any], folder: Path) -> None:
    del state["model"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_types, "has another vocabulary: .* types, where this training's dictionary has"),
        (_other_words, "another vocabulary: its dictionary .* is not this training's"),
        (_other_task, "for the task masked_lm, but this training is for translation"),
        (_other_languages, "from tgt to src, but this training is from src to tgt"),
        (_code, "argument adaptive_softmax_cutoff is no plain value"),
        (_too_short, r"takes \(1024, 20\) tokens at most"),
        (_no_weights, "is of no use for this training: .*fc1"),
        (_no_model, "is no checkpoint of fairseq-train that can be read"),
    ],
)
def test_teachers_that_are_none(
    bench: Bench, teacher: Path, tmp_path: Path, change: Callable[[dict[str, Any], Path], None],
    message: str,
) -> None:  # fmt: skip
    """Refused as training begins, before any batch."""
    state = torch.load(teacher, weights_only=True)
    assert isinstance(state["cfg"]["model"], argparse.Namespace)
    change(state, tmp_path)
    torch.save(state, tmp_path / "changed.pt")
    with pytest.raises(UsageError, match=message):
        with_teacher(bench, tmp_path / "changed.pt").meet(bench.model)


def test_a_file_that_is_none(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("text")
    for name, message in (("absent.pt", "there is no checkpoint"), ("text.pt", "no checkpoint of")):
        with pytest.raises(UsageError, match=message):
            with_teacher(bench, tmp_path / name).meet(bench.model)


def test_flags_that_are_wrong_and_when_a_teacher_is_missed(made: Bench) -> None:
    build = type(made.criterion).build_criterion
    task, config = copy.copy(made.task), copy.deepcopy(made.config)
    for name, value, message in (
        ("teacher_weight", 2.0, "--teacher-weight must be from 0 to 1, but is 2"),
        ("teacher_temperature", 0.0, "--teacher-temperature must be above 0"),
    ):
        with pytest.raises(UsageError, match=message):
            build(OmegaConf.merge(config, {name: value}), task)
    build(OmegaConf.merge(config, {"teacher": None}), task)
    with pytest.raises(UsageError, match="there is none: give --teacher"):
        task.begin_epoch(1, made.model)


def test_a_teacher_computes_as_its_student_is_trained(bench: Bench, teacher: Path) -> None:
    asked = with_teacher(bench, teacher)
    inputs = bench.sample(*LINES)["net_input"]
    single = asked(bench.model, **inputs)
    bench.model.bfloat16_linear = True
    found = asked(bench.model.train(), **inputs)
    assert not torch.equal(found, single)
    torch.testing.assert_close(found, single, rtol=0, atol=0.05 * float(single.abs().max()))
    assert torch.equal(asked(bench.model.eval(), **inputs), single)
