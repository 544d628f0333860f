"""Fine-tuning: which flags it keeps, and how long a training is of which it is a part."""

from __future__ import annotations

from typing import Any

import pytest

from nas_attn.fairseq_tools.arguments import check_arguments, training_arguments
from nas_attn.fairseq_tools.config import TrainingConfig
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.fine_tuning import count_updates, fine_tuning

ARGUMENTS: dict[str, Any] = {
    "encoder-embed-dim": 16,
    "encoder_attention_heads": 4,
    "optimizer": "adam",
    "adam-betas": "(0.9, 0.98)",
    "lr": 0.004,
    "lr-scheduler": "inverse_sqrt",
    "warmup-updates": 500,
    "warmup-init-lr": 1e-7,
    "max-tokens": 512,
    "max-epoch": 3,
}


def training(**changes: Any) -> TrainingConfig:
    named = {name.replace("_", "-"): value for name, value in changes.items()}
    arguments = {k: v for k, v in (ARGUMENTS | named).items() if v is not None}
    return TrainingConfig(arguments=arguments, seeds=[1])


def test_the_rate_falls_to_0_and_the_rest_stays() -> None:
    tuned = fine_tuning(training(), 40, learning_rate=0.5, replaced={})
    assert check_arguments(tuned) == []
    args = training_arguments(tuned)
    assert args.lr == [0.002]
    assert (args.lr_scheduler, args.max_update) == ("polynomial_decay", 40)
    assert tuned.arguments["total-num-update"] == 40
    assert (args.warmup_updates, args.max_epoch or 0, args.end_learning_rate) == (4, 0, 0.0)
    assert (args.adam_betas, args.max_tokens, args.encoder_embed_dim) == ("(0.9, 0.98)", 512, 16)


@pytest.mark.parametrize("scheduler", ["fixed", "cosine", "polynomial_decay", "tri_stage"])
def test_flags_of_the_training_s_schedule_go(scheduler: str) -> None:
    own = {"fixed": {"lr-shrink": 0.2}, "cosine": {"min-lr": 1e-6}, "tri_stage": {"hold-steps": 5}}
    config = training(lr_scheduler=scheduler, warmup_init_lr=None, max_update=60)
    config = config.model_copy(update={"arguments": config.arguments | own.get(scheduler, {})})
    if scheduler in ("polynomial_decay", "tri_stage"):
        arguments = {k: v for k, v in config.arguments.items() if k != "warmup-updates"}
        config = config.model_copy(update={"arguments": arguments})
    assert check_arguments(config) == []
    assert check_arguments(fine_tuning(config, 10, learning_rate=1.0, replaced={})) == []


def test_what_is_replaced_wins() -> None:
    replaced = {"lr_scheduler": "fixed", "lr": 0.1, "dropout": 0.3}
    tuned = fine_tuning(training(), 40, learning_rate=0.5, replaced=replaced)
    args = training_arguments(tuned)
    assert (args.lr, args.lr_scheduler, args.dropout, args.max_update) == ([0.1], "fixed", 0.3, 40)
    assert "total-num-update" not in tuned.arguments


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (None, "distilled_cross_entropy"),
        ("label_smoothed_cross_entropy", "distilled_label_smoothed_cross_entropy"),
        ("grouped_cross_entropy", "grouped_distilled_cross_entropy"),
    ],
)
def test_a_teacher_is_asked(criterion: str | None, expected: str) -> None:
    flags = {"teacher-weight": 0.25, "teacher_temperature": 2}
    tuned = fine_tuning(
        training(criterion=criterion), 40, learning_rate=0.5, replaced=flags, is_taught=True
    )
    assert check_arguments(tuned) == []
    args = training_arguments(tuned)
    assert (args.criterion, args.teacher) == (expected, None)
    assert (args.teacher_weight, args.teacher_temperature) == (0.25, 2.0)
    for name, wrong in (("teacher-weight", 1.5), ("teacher-temperature", 0), ("teacher", "x.pt")):
        changed = tuned.model_copy(update={"arguments": tuned.arguments | {name: wrong}})
        (fault,) = check_arguments(changed)
        assert fault.key == f"arguments.{name}"


def test_a_number_of_updates_is_taken_as_it_is(tiny_translation: PreparedData) -> None:
    assert count_updates(training(max_epoch=None, max_update=7), tiny_translation) == 7


def test_epochs_are_counted(tiny_translation: PreparedData, tiny_language: PreparedData) -> None:
    """That these are what fairseq trains, `tests/test_end_to_end_warm_start.py` shows."""
    whole = count_updates(training(max_epoch=1), tiny_translation)
    assert whole > 4
    assert count_updates(training(max_epoch=3), tiny_translation) == 3 * whole
    assert count_updates(training(max_epoch=3, max_update=2 * whole), tiny_translation) == 2 * whole
    halved = count_updates(training(max_epoch=1, update_freq=2), tiny_translation)
    assert halved == count_updates(training(max_epoch=1), tiny_translation, gpus=2)
    assert halved == (whole + 1) // 2
    language = TrainingConfig(
        task="language_modeling",
        arguments={"max-tokens": 512, "max-epoch": 2, "tokens-per-sample": 64},
        seeds=[1],
    )
    assert count_updates(language, tiny_language) >= 2
