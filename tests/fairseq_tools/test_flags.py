"""Flags of fairseq-train in a study: every one is decided, and what passes is what was said."""

from __future__ import annotations

import argparse
import contextlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fairseq import options
from fairseq.registry import REGISTRIES

from nas_attn.fairseq_tools.arguments import check_arguments, training_arguments
from nas_attn.fairseq_tools.commands import (
    evaluation_command,
    interactive_command,
    training_command,
    value_of,
    with_value,
)
from nas_attn.fairseq_tools.config import TrainingConfig
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.flags import ALIASES, JUDGES, OWNED, REASONS, words_of
from nas_attn.fairseq_tools.parsed import check_training
from nas_attn.plan import AttentionChoice, AttentionPlan

ARGUMENTS: dict[str, Any] = {
    "criterion": "cross_entropy",
    "optimizer": "adam",
    "lr": 0.003,
    "max-tokens": 512,
    "max-epoch": 3,
}
TASKS = {
    "translation": "multi_head_transformer",
    "language_modeling": "multi_head_transformer_lm",
    "masked_lm": "multi_head_roberta",
}


def config(task: str = "translation", **arguments: Any) -> TrainingConfig:
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    given = {name: value for name, value in (ARGUMENTS | named).items() if value is not None}
    return TrainingConfig.model_validate({"task": task, "arguments": given})


def messages(arguments: dict[str, Any]) -> dict[str, str]:
    """What is found wrong, by key, beside arguments that are right."""
    left = {name: value for name, value in ARGUMENTS.items() if name not in arguments}
    named = {name: value for name, value in (left | arguments).items() if value is not None}
    training = TrainingConfig.model_validate({"arguments": named})
    faults = check_arguments(training)
    if not faults:
        faults = list(check_training(training_arguments(training), training.arguments))
    return {fault.key: fault.message for fault in faults}


def flags_of(*chosen: str, arch: str, task: str) -> set[str]:
    """All flags of fairseq-train where something is chosen."""
    parser = options.get_training_parser()
    words = ["DATA", f"--arch={arch}", f"--task=reported_{task}", *chosen]
    with contextlib.suppress(SystemExit):  # a flag that a choice requires is not given
        options.parse_args_and_arch(parser, words, parse_known=True)
    found: set[str] = set()
    for action in parser._actions:
        found |= {option[2:] for option in action.option_strings if option.startswith("--")}
    return found - {"help"}


def test_every_flag_of_fairseq_train_is_decided() -> None:
    flags: set[str] = set()
    for task, arch in TASKS.items():
        flags |= flags_of(arch=arch, task=task)
    for registry in ("optimizer", "lr_scheduler", "bpe", "tokenizer", "scoring"):
        for name in REGISTRIES[registry]["registry"]:
            chosen = f"--{registry.replace('_', '-')}={name}"
            flags |= flags_of(chosen, arch=TASKS["translation"], task="translation")
    for name in ("label_smoothed_cross_entropy_with_alignment", "grouped_cross_entropy"):
        flags |= flags_of(f"--criterion={name}", arch=TASKS["translation"], task="translation")
    tables = (OWNED, frozenset(REASONS), frozenset(JUDGES), frozenset(ALIASES))
    names = {flag.replace("_", "-") for flag in flags}
    assert not names - frozenset().union(*tables)
    assert len(names) > 250
    assert sum(map(len, tables)) == len(frozenset().union(*tables)), "a flag is decided twice"


@pytest.mark.parametrize(
    "name",
    [
        "user-dir=/tmp/x", "--user-dir", "-a", "--max-epoch", "Max-Epoch", "max epoch", "", "=",
        "restore-file=x", "max-epoch=1", "lr\n", "l\u2010r", "--", "@file",
    ],
)  # fmt: skip
def test_a_name_is_a_name(name: str) -> None:
    assert "no name of a flag" in messages({name: 1})[f"arguments.{name}"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("share-all-embeddings", "--user-dir=/tmp/x", "takes no value"),
        ("share-all-embeddings", 1, "takes no value"),
        ("dropout", True, "needs a value"),
        ("max-tokens", "512 --user-dir=/tmp/x", "must be a whole number"),
        ("criterion", "--user-dir=/tmp/x", "must be a word"),
        ("max-tok", 4, "no such flag"),
        ("user-di", "/tmp/x", "no such flag"),
        ("help", True, "no such flag"),
        ("user-dir", "/tmp/x", "set by nas-attn itself"),
        ("user_dir", "/tmp/x", "set by nas-attn itself"),
        ("arch", "transformer", "set by nas-attn itself"),
        ("attention-plan", "/dev/zero", "set by nas-attn itself"),
        ("valid-subset", "test", "opens `test`"),
        ("valid-subset", "valid,test", "opens `test`"),
        ("train-subset", "test", "opens `test`"),
        ("gen-subset", "test", "opens `test`"),
        ("combine-val", True, "opens `test`"),
        ("max-valid-steps", 1, "the whole of `valid`"),
        ("nval", 1, "the whole of `valid`"),
        ("validate-interval", 2, "after every epoch"),
        ("validate-interval-updates", 2, "save-interval-updates"),
        ("validate-after-updates", 2, "after every epoch"),
        ("disable-validation", True, "after every epoch"),
        ("skip-invalid-size-inputs-valid-test", True, "the whole of `valid`"),
        ("reset-optimizer", True, "goes on exactly"),
        ("restore-file", "/tmp/x.pt", "goes on exactly"),
        ("finetune-from-model", "/tmp/x.pt", "goes on exactly"),
        ("checkpoint-suffix", "x", "goes on exactly"),
        ("no-save", True, "goes on exactly"),
        ("save-interval", 3, "goes on exactly"),
        ("stop-time-hours", 1, "how fast the machine is"),
        ("distributed-world-size", 2, "resources.gpus"),
        ("local_rank", 1, "resources.gpus"),
        ("encoder-embed-path", "/tmp/x", "names a file"),
        ("encoder-xformers-att-config", "open('/tmp/x')", "fairseq's own attention"),
        ("bpe", "gpt2", "a training does not read it"),
        ("eval-tokenized-bleu", True, "bleu_tokenizer: none"),
        ("ddp-backend", "fully_sharded", "checkpoints in pieces"),
        ("optimizer", "composite", "take adam"),
        ("criterion", "sentence_ranking", "does not train a translation model"),
        ("criterion", "masked_lm", "does not train a translation model"),
        ("max-update", 0, ""),
        ("lr", "", "is empty"),
        ("lr", 0, "above 0"),
        ("lr", "0.1,", ""),
        ("lr", "0.1,0", "above 0"),
        ("lr", "(", "above 0"),
        ("lr", "(" * 400, "above 0"),
        ("lr", "1" * 2000, "too long"),
        ("lr", "[]", "above 0"),
        ("max-tokens", 0, "from 1"),
        ("max-tokens", 10**12, "from 1"),
        ("max-tokens-valid", "__import__('os')", "from 1"),
        ("batch-size", 0, "from 1"),
        ("max-sentences", 0, "from 1"),
        ("update-freq", 0, "from 1"),
        ("update-freq", "1.5", "from 1"),
        ("dropout", 2, "less than 1"),
        ("dropout", -0.1, "less than 1"),
        ("dropout", "nan", "less than 1"),
        ("label-smoothing", 1.5, "less than 1"),
        ("encoder-layers", 10**9, "from 1 to 1000"),
        ("clip-norm", -1, "at least 0"),
        ("adam-betas", "open('/tmp/x', 'w') and (0.9, 0.98)", "two numbers"),
        ("adam-betas", "(0.9, 1.5)", "two numbers"),
        ("adam-betas", "(0.9,)", "two numbers"),
        ("adam-betas", "(0.9, '0.98')", "two numbers"),
        ("adamax-betas", "print(1)", "two numbers"),
        ("lamb-betas", "print(1)", "two numbers"),
        ("adafactor-eps", "print(1)", "two numbers"),
        ("character-filters", "print(1)", "pairs"),
        ("adaptive-input-cutoff", "print(1)", "whole numbers"),
        ("adaptive-softmax-cutoff", "open('/tmp/x')", "whole numbers"),
        ("epoch2lr", "print(1)", "rates by epoch"),
        ("eval-bleu-args", "{", "a JSON object"),
        ("eval-bleu-args", '{"prefix_allowed_tokens_fn": 1}', "has no option"),
        ("eval-bleu-args", '{"beam": "5"}', "must be a number"),
        ("eval-bleu-detok", "x", "one of space"),
        ("eval-bleu-detok-args", '{"target_lang": "fr", "moses_no_escape": true}', ""),
        ("eval-bleu-detok-args", '{"target_lang": "../fr"}', "must be a language"),
        ("eval-bleu-detok-args", '{"moses_no_escape": "fr"}', "must be a number"),
        ("wandb-project", "${oc.env:HOME}", "would interpret"),
        ("wandb-project", "a\\", "would interpret"),
        ("tensorboard-logdir", "/tmp/x", "a folder's name"),
        ("tensorboard-logdir", "../../x", "a folder's name"),
        ("max-epoch", "x", "from 0"),
    ],
)  # fmt: skip
def test_flags_are_judged(name: str, value: Any, message: str) -> None:
    found = messages({name: value})
    if message:
        assert message in found[f"arguments.{name}"]
    else:
        assert not found


def test_a_flag_is_given_once() -> None:
    found = messages({"max_tokens": 9})
    assert found == {"arguments.max_tokens": "is the same flag as max-tokens; give one of them"}
    found = messages({"batch-size": 9, "max-sentences": 8})
    assert "is the same flag as batch-size" in found["arguments.max-sentences"]


@pytest.mark.parametrize(
    ("arguments", "key", "message"),
    [
        ({"max-epoch": None, "max-update": 0}, "arguments", "never ends"),
        ({"max-epoch": 0, "max-update": 0}, "arguments", "never ends"),
        ({"max-tokens": None}, "arguments", "give max-tokens or batch-size"),
        ({"optimizer": None}, "arguments.optimizer", "is missing"),
        (
            {"vote-at-epoch": 2},
            "arguments.vote-at-epoch",
            "set training.arguments.criterion to grouped_cross_entropy",
        ),
        (
            {"optimizer": "sgd", "adam-betas": "(0.9, 0.98)"},
            "arguments.adam-betas",
            "belongs to another optimizer, not to sgd: set training.arguments.optimizer to adam",
        ),
        ({"t-mult": 2}, "arguments.t-mult", "set training.arguments.lr-scheduler to cosine"),
        ({"tokens-per-sample": 9}, "arguments.tokens-per-sample", "not of this task"),
        (
            {"criterion": "grouped_cross_entropy", "vote-at-epoch": 9},
            "arguments.vote-at-epoch",
            "the training ends before: max-epoch is 3",
        ),
        (
            {"criterion": "grouped_cross_entropy", "vote-at-update": 9, "max-update": 8},
            "arguments.vote-at-update",
            "the training ends before: max-update is 8",
        ),
        ({"lr-scheduler": "polynomial_decay"}, "arguments.total-num-update", "is missing"),
        (
            {"lr-scheduler": "inverse_sqrt", "warmup-updates": 0},
            "arguments.warmup-updates",
            "at least 1",
        ),
        ({"lr-scheduler": "cosine"}, "arguments.lr-period-updates", "is missing"),
        ({"lr-scheduler": "cosine", "lr": "0.1,0.2"}, "arguments.lr", "takes one learning rate"),
        ({"lr-scheduler": "tri_stage"}, "arguments.phase-ratio", "is missing"),
        (
            {"lr-scheduler": "tri_stage", "max-update": 9, "phase-ratio": "(0.1, 0.1, 0.1)"},
            "arguments.phase-ratio",
            "must add up to 1",
        ),
        ({"lr-scheduler": "triangular", "max-lr": 0.001}, "arguments.max-lr", "must be more"),
        ({"criterion": "adaptive_loss"}, "arguments.criterion", "needs adaptive-softmax-cutoff"),
    ],
)
def test_what_would_fail_later_is_refused(
    arguments: dict[str, Any], key: str, message: str
) -> None:
    assert message in messages(arguments)[key]


def test_what_is_parsed_is_what_was_said() -> None:
    training = config(
        lr="0.1,0.2",
        adam_betas="(0.9, 0.95)",
        left_pad_source=False,
        left_pad_target=True,
        share_all_embeddings=False,
        eval_bleu_remove_bpe=True,
        eval_bleu_args='{"beam": 4, "lenpen": 0.6}',
        max_tokens_valid=100,
        patience=-1,
    )
    assert check_arguments(training) == []
    args = training_arguments(training)
    assert args.lr == [0.1, 0.2]
    assert (args.adam_betas, args.patience) == ("(0.9, 0.95)", -1)
    assert (args.left_pad_source, args.left_pad_target) == (False, True)
    assert not args.share_all_embeddings
    assert (args.eval_bleu_remove_bpe, args.max_tokens_valid) == ("@@ ", "100")
    assert training_arguments(config(left_pad_source=True)).left_pad_source


def test_a_value_is_one_word() -> None:
    words = words_of({"lr": -1, "criterion": "--user-dir x", "fp16": True, "amp": False})
    assert words == ["--lr=-1", "--criterion=--user-dir x", "--fp16"]
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr")
    assert parser.parse_args(words[:1]).lr == "-1"


@pytest.mark.parametrize("command", [["x", "--seed", "7", "--cpu"], ["x", "--seed=7", "--cpu"]])
def test_values_are_found_in_commands_of_both_forms(command: list[str]) -> None:
    """Records of older searches have a flag and its value as two words."""
    assert value_of(command, "--seed") == "7"
    assert value_of(with_value(command, "--seed", "8=9"), "--seed") == "8=9"
    assert len(with_value(command, "--seed", "8")) == len(command)
    assert value_of(command, "--see") is None
    with pytest.raises(ValueError, match="--see"):
        with_value(command, "--see", "1")


def test_commands_hold_no_word_of_a_study(tmp_path: Path) -> None:
    """Words that are no flags are paths and numbers of nas-attn's own, after a flag of its own."""
    data = PreparedData(folder=tmp_path, languages=("--user-dir", "-x"))
    data.sentencepiece_model.touch()
    plan = AttentionPlan.uniform(AttentionChoice("multi_head"))
    logged = config(tensorboard_logdir="logs", criterion="--user-dir x")
    commands = [
        training_command(logged, data, plan, seed=1, metric="--user-dir", save_dir=tmp_path),
        evaluation_command(logged, data, tmp_path, "--valid"),
        evaluation_command(config("language_modeling"), data, tmp_path, "--valid"),
        evaluation_command(config("masked_lm"), data, tmp_path, "--valid"),
        interactive_command(data, tmp_path),
    ]
    for command in commands:
        assert command[1] == str(tmp_path)
        for before, word in pairwise(command[1:]):
            if not word.startswith("--"):
                assert word.startswith("/") or word == "1"
                assert before in OWN_VALUES


OWN_VALUES = (
    "--user-dir", "--path", "--save-dir", "--seed", "--sentencepiece-model", "--tensorboard-logdir",
)  # fmt: skip
