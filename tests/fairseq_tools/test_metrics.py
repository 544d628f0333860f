"""Validation metrics as objectives: flags, what fairseq logs, and what is refused beforehand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.arguments import check_arguments, training_arguments
from nas_attn.fairseq_tools.commands import (
    LOGGED,
    check_metric,
    decoding_command,
    evaluation_command,
    training_command,
    value_of,
)
from nas_attn.fairseq_tools.config import TrainingConfig
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.run_fairseq import run_fairseq
from nas_attn.measures import maximises
from nas_attn.plan import AttentionChoice, AttentionPlan
from tests.helpers.forked import fork_server

TINY: dict[str, Any] = {
    "encoder-layers": 1,
    "decoder-layers": 1,
    "encoder-embed-dim": 32,
    "decoder-embed-dim": 32,
    "encoder-ffn-embed-dim": 64,
    "decoder-ffn-embed-dim": 64,
    "encoder-attention-heads": 4,
    "decoder-attention-heads": 4,
    "share-all-embeddings": True,
    "dropout": 0.0,
    "optimizer": "adam",
    "lr": 0.01,
    "num-workers": 0,
    "max-tokens": 256,
    "max-epoch": 2,
    "criterion": "label_smoothed_cross_entropy",
    "label-smoothing": 0.1,
}
PLAN = AttentionPlan.uniform(AttentionChoice("multi_head"))


def config(task: str = "translation", **arguments: Any) -> TrainingConfig:
    given = {name.replace("_", "-"): value for name, value in arguments.items()}
    return TrainingConfig.model_validate({"task": task, "arguments": {**TINY, **given}})


def command(training: TrainingConfig, data: PreparedData, metric: str, save_dir: str) -> list[str]:
    return training_command(training, data, PLAN, seed=1, metric=metric, save_dir=Path(save_dir))


def data_set(folder: Path, *, pieces: bool) -> PreparedData:
    data = PreparedData(folder=folder, languages=("en", "de"))
    if pieces:
        data.sentencepiece_model.touch()
    return data


def added(training: TrainingConfig, data: PreparedData, metric: str) -> list[str]:
    """The flags that a metric adds, besides those of a loss."""
    plain, flags = (command(training, data, name, "s") for name in ("loss", metric))
    place = plain.index("--best-checkpoint-metric=loss")
    assert flags[: place + 1] == [*plain[:place], f"--best-checkpoint-metric={metric}"]
    return flags[place + 1 : flags.index("--update-epoch-batch-itr=True")]


def test_what_is_maximised() -> None:
    assert [m for m in ("loss", "nll_loss", "ppl", "bleu", "accuracy") if maximises(m)] == [
        "bleu",
        "accuracy",
    ]


@pytest.mark.parametrize("metric", ["loss", "nll_loss", "ppl"])
def test_a_loss_needs_no_flags(metric: str, tmp_path: Path) -> None:
    assert added(config(), data_set(tmp_path, pieces=True), metric) == []


def test_bleu_is_of_plain_text(tmp_path: Path) -> None:
    flags = ["--maximize-best-checkpoint-metric", "--eval-bleu"]
    flags += ['--eval-bleu-args={"beam": 5}', "--eval-bleu-detok=space"]
    assert added(config(), data_set(tmp_path, pieces=False), "bleu") == flags
    flags.append("--eval-bleu-remove-bpe=sentencepiece")
    assert added(config(), data_set(tmp_path, pieces=True), "bleu") == flags


def test_flags_that_are_given_are_not_added(tmp_path: Path) -> None:
    given = config(eval_bleu=True, eval_bleu_args='{"beam": 1}', eval_bleu_remove_bpe="@@ ")
    data = data_set(tmp_path, pieces=True)
    whole = command(given, data, "bleu", "s")
    for word in ("--eval-bleu", '--eval-bleu-args={"beam": 1}', "--eval-bleu-remove-bpe=@@ "):
        flags = [word.partition("=")[0] for word in whole]
        assert flags.count(word.partition("=")[0]) == whole.count(word) == 1
    flags = added(given, data, "bleu")
    assert flags == ["--maximize-best-checkpoint-metric", "--eval-bleu-detok=space"]
    measured = config(report_accuracy=True)
    assert command(measured, data, "accuracy", "s").count("--report-accuracy") == 1


@pytest.mark.parametrize("prefix", ["", "grouped_", "distilled_", "grouped_distilled_"])
def test_accuracy_is_asked_of_the_criterion(prefix: str, tmp_path: Path) -> None:
    training = config(criterion=f"{prefix}label_smoothed_cross_entropy")
    flags = ["--maximize-best-checkpoint-metric", "--report-accuracy"]
    assert added(training, data_set(tmp_path, pieces=False), "accuracy") == flags
    assert (
        check_arguments(config(criterion=training.arguments["criterion"], report_accuracy=True))
        == []
    )


LANGUAGE, MASKED = "language_modeling", "masked_lm"
REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    (LANGUAGE, "bleu", {}, "bleu is for translation"),
    (MASKED, "bleu", {"criterion": "masked_lm"}, "bleu is for translation"),
    (LANGUAGE, "nll_loss", {"criterion": "cross_entropy"}, "take loss"),
    (LANGUAGE, "nll_loss", {"criterion": "grouped_adaptive_loss"}, "take loss"),
    (MASKED, "nll_loss", {"criterion": "masked_lm"}, "take loss"),
    (MASKED, "accuracy", {"criterion": "masked_lm"}, "it logs loss, ppl: take one"),
    (
        "translation",
        "accuracy",
        {"criterion": "cross_entropy"},
        "set training.arguments.criterion to label_smoothed_cross_entropy",
    ),
    (
        LANGUAGE,
        "accuracy",
        {"criterion": "grouped_cross_entropy"},
        "set training.arguments.criterion to grouped_label_smoothed_cross_entropy",
    ),
    ("translation", "accuracy", {"criterion": "distilled_cross_entropy"}, "to label_smoothed"),
    ("translation", "loos", {}, "it logs accuracy, bleu, loss, nll_loss, ppl"),
    ("translation", "nll_loss", {"criterion": "grouped_cross_entropy"}, "take loss"),
]


@pytest.mark.parametrize(("task", "metric", "arguments", "message"), REFUSED)
def test_metrics_that_are_surely_not_logged(
    task: str, metric: str, arguments: dict[str, Any], message: str
) -> None:
    (fault,) = check_metric(config(task, **arguments), metric)
    assert fault.key == "objectives.metric"
    assert message in fault.message


@pytest.mark.parametrize(
    ("task", "metric", "arguments"),
    [
        ("translation", "bleu", {}),
        ("translation", "bleu", {"criterion": "cross_entropy"}),
        ("translation", "nll_loss", {}),
        ("translation", "accuracy", {"criterion": "grouped_label_smoothed_cross_entropy"}),
        (LANGUAGE, "accuracy", {}),
        (LANGUAGE, "ppl", {"criterion": "cross_entropy"}),
        (LANGUAGE, "nll_loss", {"criterion": "cross_entropy", "sentence_avg": True}),
        (MASKED, "loss", {"criterion": "masked_lm"}),
        ("translation", "latency", {"criterion": "latency_augmented_label_smoothed_cross_entropy"}),
    ],
)
def test_metrics_that_may_be_logged(task: str, metric: str, arguments: dict[str, Any]) -> None:
    assert check_metric(config(task, **arguments), metric) == []


def test_criterions_that_are_known_exist() -> None:
    from fairseq.criterions import CRITERION_REGISTRY

    assert set(LOGGED) <= set(CRITERION_REGISTRY)


def test_decoding_is_evaluation_of_the_validation_set_without_scoring(tmp_path: Path) -> None:
    data = data_set(tmp_path, pieces=False)
    decoding = decoding_command(config(), data, tmp_path / "c.pt")
    evaluation = evaluation_command(config(), data, tmp_path / "c.pt", "valid")
    assert [*decoding, "--scoring=sacrebleu"] == evaluation
    with pytest.raises(NasAttnError, match="not for language_modeling"):
        decoding_command(config(LANGUAGE), data, tmp_path / "c.pt")


def train(training: TrainingConfig, data: PreparedData, metric: str, folder: Path) -> str:
    flags = command(training, data, metric, str(folder / "checkpoints"))
    done = run_fairseq("train", flags[1:], folder / "train.log", launcher=fork_server())
    assert done.status == 0, done.output[-3000:]
    return done.output


def reported(folder: Path, metric: str) -> list[float]:
    lines = (folder / "report.jsonl").read_text().splitlines()
    return [json.loads(line)["metrics"][metric] for line in lines]


@pytest.mark.slow
def test_trainings_by_bleu(
    tiny_translation: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BLEU of validation is sacreBLEU of fairseq-generate; the best is the highest; resumes."""
    monkeypatch.setenv("NAS_ATTN_REPORT", str(tmp_path / "report.jsonl"))
    train(config(max_epoch=12, validate_interval=4), tiny_translation, "bleu", tmp_path)
    assert len(reported(tmp_path, "bleu")) == 3
    longer = config(max_epoch=20, validate_interval=4)
    output = train(longer, tiny_translation, "bleu", tmp_path)
    assert "checkpoint_last.pt (epoch 13 @" in output
    scores = reported(tmp_path, "bleu")
    assert len(scores) == 5
    assert scores[0] < max(scores)
    best = tmp_path / "checkpoints" / "checkpoint_best.pt"
    assert torch.load(best, weights_only=True)["extra_state"]["best"] == max(scores) > 1.0
    evaluation = evaluation_command(longer, tiny_translation, best, "valid")
    printed = run_fairseq(
        "generate", evaluation[1:], tmp_path / "generate.log", launcher=fork_server()
    ).output
    found = re.search(r"Generate valid with beam=5: BLEU = ([\d.]+)", printed)
    assert found is not None, printed[-3000:]
    assert float(found[1]) == max(scores)
    decoding = decoding_command(longer, tiny_translation, best)
    printed = run_fairseq(
        "generate", decoding[1:], tmp_path / "decode.log", launcher=fork_server()
    ).output
    assert re.search(r"Translated 61 sentences \([\d,]+ tokens\) in [\d.]+s", printed), printed[
        -3000:
    ]


@pytest.mark.slow
def test_trainings_by_accuracy(
    tiny_translation: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_ATTN_REPORT", str(tmp_path / "report.jsonl"))
    training = config(criterion="grouped_label_smoothed_cross_entropy", max_epoch=3)
    train(training, tiny_translation, "accuracy", tmp_path)
    scores = reported(tmp_path, "accuracy")
    assert 0.0 < scores[0] < max(scores) <= 100.0
    state = torch.load(tmp_path / "checkpoints" / "checkpoint_best.pt", weights_only=True)
    assert state["extra_state"]["best"] == max(scores)


def test_fairseq_takes_the_flags_of_metrics(tmp_path: Path) -> None:
    flags = added(config(), data_set(tmp_path, pieces=True), "bleu")
    names = [flag[2:].partition("=")[0] for flag in flags if flag.startswith("--eval")]
    values: dict[str, Any] = dict.fromkeys(names, True)
    values |= {"eval-bleu-args": '{"beam": 5}', "eval-bleu-detok": "space"}
    values["eval-bleu-remove-bpe"] = "sentencepiece"
    args = training_arguments(config(**values))
    assert args.eval_bleu
    assert json.loads(args.eval_bleu_args) == {"beam": 5}
    assert not args.eval_tokenized_bleu


def test_every_training_has_its_own_folder_for_tensorboard(tmp_path: Path) -> None:
    data = data_set(tmp_path, pieces=False)
    logged = config(tensorboard_logdir="tensorboard")
    made = command(logged, data, "loss", "runs/x/trials/00001/seed-1/checkpoints")
    assert value_of(made, "--tensorboard-logdir") == "runs/x/trials/00001/seed-1/tensorboard"
    assert sum("tensorboard-logdir" in word for word in made) == 1
    assert "tensorboard" not in " ".join(command(config(), data, "loss", "checkpoints"))
