"""Command lines of fairseq's tools for a training section, and what is asked of its metric."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from nas_attn.bleu import DEFAULT, BleuTokenizer
from nas_attn.errors import ConfigIssue, NasAttnError
from nas_attn.fairseq_tools.arguments import architecture, task_flag
from nas_attn.fairseq_tools.bleu import check_tokenizer, scoring_flags, validation_flags
from nas_attn.fairseq_tools.config import TrainingConfig
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.flags import given, plain_criterion, words_of
from nas_attn.measures import maximises
from nas_attn.plan import AttentionPlan

SMOOTHED = frozenset({"loss", "nll_loss", "ppl"})
LOGGED = {
    "adaptive_loss": frozenset({"loss", "ppl"}),
    "cross_entropy": frozenset({"loss", "ppl"}),
    "label_smoothed_cross_entropy": SMOOTHED | {"accuracy"},
    "label_smoothed_cross_entropy_with_alignment": SMOOTHED | {"alignment_loss"},
    "label_smoothed_cross_entropy_with_ctc": SMOOTHED | {"accuracy", "ctc_loss"},
    "label_smoothed_cross_entropy_with_rdrop": SMOOTHED | {"accuracy", "rdrop_kl_loss"},
    "masked_lm": frozenset({"loss", "ppl"}),
}
"""What fairseq's criterions log of a validation; what is not listed may log anything."""

LOGGED_BY_SENTENCE = frozenset({"adaptive_loss", "cross_entropy"})
"""Log nll_loss, by token, only where --sentence-avg makes their loss one by sentence."""

TENSORBOARD = "--tensorboard-logdir"


def plugin_folder() -> Path:
    """The plugin's folder, which fairseq takes as `--user-dir`.

    Raises:
        NasAttnError: it is not installed.
    """
    spec = importlib.util.find_spec("fairseq_plugin")  # importing it takes seconds
    if spec is None or spec.origin is None:
        raise NasAttnError("the package fairseq_plugin is not installed beside nas_attn")
    return Path(spec.origin).resolve().parent


def training_command(
    config: TrainingConfig,
    data: PreparedData,
    plan: AttentionPlan,
    *,
    seed: int,
    metric: str,
    save_dir: Path,
    bleu_tokenizer: BleuTokenizer = DEFAULT,
) -> list[str]:
    """The fairseq-train command of one training, the one that a person would type.

    Args:
        config: The training section.
        data: The data set.
        plan: Plan for all attention.
        seed: Seed of weights, batches and dropout.
        metric: Metric of validation, by which the best checkpoint is kept; fairseq is made to log
            it.
        save_dir: Folder for checkpoints.
        bleu_tokenizer: Tokenizer of the metric `bleu`.
    """
    command = ["fairseq-train", str(data.folder)]
    # Paths are words of their own: on another node, and in what is exported, they become others.
    command += ["--user-dir", str(plugin_folder()), task_flag(config), *_language_flags(data)]
    command += [f"--arch={architecture(config)}", f"--attention-plan={plan.dumps()}"]
    command += words_of(config.arguments)
    command += ["--seed", str(seed), "--save-dir", str(save_dir), "--no-epoch-checkpoints"]
    command.append(f"--best-checkpoint-metric={metric}")
    command += _metric_flags(config, data, metric, bleu_tokenizer)
    # Else batches depend on the epoch that a process started in, and resuming changes the result.
    command.append("--update-epoch-batch-itr=True")
    # fairseq drops what is left of a set after the last full multiple (8 unless it is set).
    command += ["--required-batch-size-multiple=1", "--log-format=simple"]
    logs = value_of(command, TENSORBOARD)
    if logs is not None:
        # Trainings side by side would write into one folder.
        command.remove(f"{TENSORBOARD}={logs}")
        command += [TENSORBOARD, str(save_dir.parent / logs)]
    return command


def evaluation_command(
    config: TrainingConfig,
    data: PreparedData,
    checkpoint: Path,
    subset: str,
    bleu_tokenizer: BleuTokenizer = DEFAULT,
) -> list[str]:
    """The command that evaluates a checkpoint on one subset.

    fairseq-generate with corpus BLEU (beam 5), fairseq-eval-lm, or fairseq-validate.
    """
    tools = {"translation": "generate", "language_modeling": "eval-lm", "masked_lm": "validate"}
    command = _with_checkpoint(tools[config.task], data, checkpoint)
    if config.task == "masked_lm":
        command += ["--task=masked_lm", "--criterion=masked_lm"]
        return [*command, f"--valid-subset={subset}", "--batch-size=32"]
    if config.task == "language_modeling":
        tokens = given(config.arguments).get("tokens-per-sample", 512)
        command.append(f"--gen-subset={subset}")
        return [*command, "--batch-size=32", f"--tokens-per-sample={tokens}"]
    command += [*_decoding_flags(data, subset), *scoring_flags(bleu_tokenizer)]
    return command + _subword_flags(data)


REPORTED_LOSSES: dict[str, tuple[str, ...]] = {
    "translation": ("bleu",),
    "language_modeling": ("nll_loss", "ppl"),
    "masked_lm": ("loss", "nll_loss", "ppl"),
}
"""Metrics that `evaluation_command` measures as a training does, for each task."""


def loss_command(
    config: TrainingConfig, data: PreparedData, checkpoint: Path, metric: str, subset: str
) -> list[str]:
    """The fairseq-validate command that measures a training's metric on one subset, with the
    checkpoint's own criterion; empty if `evaluation_command` does."""
    if metric in REPORTED_LOSSES[config.task]:
        return []
    command = _with_checkpoint("validate", data, checkpoint)
    command += [f"--task={config.task}", f"--valid-subset={subset}", *_language_flags(data)]
    return [*command, "--batch-size=32"]


def interactive_command(data: PreparedData, checkpoint: Path) -> list[str]:
    """The fairseq-interactive command that translates raw text, one sentence a line (beam 5).

    Text is cut into pieces by the data set's SentencePiece model, and put together again; without
    one it must be tokenised as the data set was.

    Args:
        data: A translation data set; of it only dictionaries and the SentencePiece model are read.
        checkpoint: Checkpoint of a translation model.
    """
    command = _with_checkpoint("interactive", data, checkpoint)
    return [*command, *_language_flags(data), "--beam=5", *_subword_flags(data)]


def decoding_command(config: TrainingConfig, data: PreparedData, checkpoint: Path) -> list[str]:
    """The fairseq-generate command that translates the validation set, to be timed.

    Raises:
        NasAttnError: the task is not translation.
    """
    if config.task != "translation":
        raise NasAttnError(f"decoding is timed for translation, not for {config.task}")
    return _with_checkpoint("generate", data, checkpoint) + _decoding_flags(data, "valid")


def convert_command(
    trained: Path, plan: AttentionPlan, data: PreparedData, out: Path, *, distil: bool = False
) -> list[str]:
    """The command that turns a trained checkpoint into one of another plan.

    Args:
        trained: The checkpoint.
        plan: The other plan.
        data: Data set that the conversion is calibrated on.
        out: Path of the new checkpoint.
        distil: Whether converted modules are trained alone, too.
    """
    command = ["nas-attn", "convert", str(trained), "--plan", plan.dumps()]
    command += ["--calibrate", str(data.folder), "--out", str(out), "--replace"]
    return [*command, "--distil"] if distil else command


def check_bleu(config: TrainingConfig, bleu_tokenizer: BleuTokenizer) -> list[ConfigIssue]:
    """What is wrong with a tokenizer for the BLEU of a training and of its evaluation."""
    return check_tokenizer(bleu_tokenizer, given(config.arguments))


def check_metric(config: TrainingConfig, metric: str) -> list[ConfigIssue]:
    """What is wrong with a validation metric as objective of a training.

    A name that a criterion which is not in `LOGGED` may log passes.
    """
    message = _refused_metric(config, metric)
    return [ConfigIssue("objectives.metric", message)] if message else []


def _refused_metric(config: TrainingConfig, metric: str) -> str:
    """Why fairseq surely does not log a metric, and what to do; empty if it may."""
    if metric == "bleu":
        if config.task == "translation":
            return ""
        return f"bleu is for translation, not for {config.task}: take loss or ppl"
    criterion = _criterion(config)
    named = given(config.arguments)
    logged = LOGGED.get(criterion)
    if logged is None:
        return ""
    if criterion in LOGGED_BY_SENTENCE and named.get("sentence-avg"):
        logged |= {"nll_loss"}
    if metric in logged:
        return ""
    offer = ", ".join(sorted(logged | ({"bleu"} if config.task == "translation" else set())))
    message = f"{criterion} does not log {metric!r}; it logs {offer}"
    if metric == "nll_loss":
        return f"{message}: take loss, which is in bits per token here"
    if metric == "accuracy" and criterion == "cross_entropy":
        grouped = "grouped_" if str(named.get("criterion")).startswith("grouped_") else ""
        smoothed = f"{grouped}label_smoothed_cross_entropy"
        return f"{message}: set training.arguments.criterion to {smoothed}"
    return f"{message}: take one of these"


def value_of(command: Sequence[str], flag: str) -> str | None:
    """The value of a flag in a command, as one word with it or as the next one, or None."""
    for at, word in enumerate(command):
        name, equals, value = word.partition("=")
        if name == flag:
            return value if equals else command[at + 1] if at + 1 < len(command) else None
    return None


def with_value(command: Sequence[str], flag: str, value: str) -> list[str]:
    """A command whose flag has another value.

    Raises:
        ValueError: the command has no such flag.
    """
    at = [word.partition("=")[0] for word in command].index(flag)
    if command[at] == flag:
        return [*command[: at + 1], value, *command[at + 2 :]]
    return [*command[:at], f"{flag}={value}", *command[at + 1 :]]


def _language_flags(data: PreparedData) -> list[str]:
    if not data.languages:
        return []
    source, target = data.languages
    return [f"--source-lang={source}", f"--target-lang={target}"]


def _metric_flags(
    config: TrainingConfig, data: PreparedData, metric: str, bleu_tokenizer: BleuTokenizer
) -> list[str]:
    """What makes fairseq log a metric and keep the best by it, as far as it is not given."""
    flags = ["--maximize-best-checkpoint-metric"] if maximises(metric) else []
    wanted: list[tuple[str, str | None]] = []
    if metric == "bleu":
        wanted += validation_flags(bleu_tokenizer)
        if data.sentencepiece_model.is_file():
            wanted.append(("eval-bleu-remove-bpe", "sentencepiece"))
    elif metric == "accuracy" and "accuracy" in LOGGED.get(_criterion(config), ()):
        wanted.append(("report-accuracy", None))
    named = given(config.arguments)
    for name, value in wanted:
        if named.get(name, False) is False:
            flags.append(f"--{name}" if value is None else f"--{name}={value}")
    return flags


def _with_checkpoint(tool: str, data: PreparedData, checkpoint: Path) -> list[str]:
    command = [f"fairseq-{tool}", str(data.folder)]
    command += ["--user-dir", str(plugin_folder()), "--path", str(checkpoint)]
    return [*command, "--required-batch-size-multiple=1"]


def _decoding_flags(data: PreparedData, subset: str) -> list[str]:
    return [f"--gen-subset={subset}", *_language_flags(data), "--batch-size=64", "--beam=5"]


def _subword_flags(data: PreparedData) -> list[str]:
    if not data.sentencepiece_model.is_file():
        return []
    return ["--bpe=sentencepiece", "--sentencepiece-model", str(data.sentencepiece_model)]


def _criterion(config: TrainingConfig) -> str:
    """The criterion's name without group constraint and teacher, which change no validation."""
    return plain_criterion(str(given(config.arguments).get("criterion", "cross_entropy")))
