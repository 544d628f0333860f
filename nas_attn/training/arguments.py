"""From a training section to fairseq's command line and back to checked arguments."""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
from collections.abc import Sequence
from pathlib import Path

from nas_attn.errors import Fault, NasAttnError
from nas_attn.plan import AttentionPlan
from nas_attn.section import Scalar
from nas_attn.training.config import TrainingConfig
from nas_attn.training.data import PreparedData

BASELINE_SCHEME = "multi_head"

MAXIMISED = frozenset({"bleu", "accuracy"})
"""Validation metrics that are better when higher; all others are better when lower."""

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

BLEU_FLAGS = (
    ("eval-bleu", None),
    ("eval-bleu-args", '{"beam": 5}'),
    ("eval-bleu-detok", "space"),
)
"""Make fairseq translate the validation set each time; `space` detokenises nothing."""

FAMILIES = {
    "translation": "transformer",
    "language_modeling": "transformer_lm",
    "masked_lm": "roberta",
}
"""fairseq's model family of each task."""

TENSORBOARD = "--tensorboard-logdir"
RESERVED = frozenset(
    {
        "arch",
        "attention-plan",
        "best-checkpoint-metric",
        "data",
        "disable-validation",
        "finetune-from-model",
        "log-file",
        "log-format",
        "maximize-best-checkpoint-metric",
        "no-epoch-checkpoints",
        "no-last-checkpoints",
        "no-save",
        "no-save-optimizer-state",
        "required-batch-size-multiple",
        "restore-file",
        "save-dir",
        "seed",
        "source-lang",
        "target-lang",
        "task",
        "update-epoch-batch-itr",
        "user-dir",
    }
)
"""Flags that nas-attn sets itself; a study may not."""


def plugin_folder() -> Path:
    """The plugin's folder, which fairseq takes as `--user-dir`."""
    import fairseq_plugin

    return Path(fairseq_plugin.__file__).resolve().parent


def architecture(config: TrainingConfig) -> str:
    """The plugin's architecture; the plan is given apart, so its scheme is the baseline's."""
    family = FAMILIES[config.task]
    return f"{BASELINE_SCHEME}_{family}" + (f"_{config.size}" if config.size else "")


def training_command(
    config: TrainingConfig,
    data: PreparedData,
    plan: AttentionPlan,
    *,
    seed: int,
    metric: str,
    save_dir: Path,
) -> list[str]:
    """The fairseq-train command of one training, the one that a person would type.

    Args:
        config: the training section.
        data: the data set.
        plan: for all attention.
        seed: of weights, batches and dropout.
        metric: of validation, by which the best checkpoint is kept; fairseq is told to log it.
        save_dir: for checkpoints.
    """
    command = ["fairseq-train", str(data.folder)]
    command += ["--user-dir", str(plugin_folder()), *_task_flags(config)]
    if data.languages:
        command += ["--source-lang", data.languages[0], "--target-lang", data.languages[1]]
    command += ["--arch", architecture(config), "--attention-plan", plan.dumps()]
    command += _flags(config)
    command += ["--seed", str(seed), "--save-dir", str(save_dir), "--no-epoch-checkpoints"]
    command += ["--best-checkpoint-metric", metric, *_metric_flags(config, data, metric)]
    # Else batches depend on the epoch that a process started in, and resuming changes the result.
    command += ["--update-epoch-batch-itr", "True"]
    # fairseq drops what is left of a set after the last full multiple (8 unless told otherwise).
    command += ["--required-batch-size-multiple", "1", "--log-format", "simple"]
    if TENSORBOARD in command:
        # Trainings side by side would write into one folder.
        logs = save_dir.parent / command[command.index(TENSORBOARD) + 1]
        command = with_value(command, TENSORBOARD, str(logs))
    return command


def evaluation_command(
    config: TrainingConfig, data: PreparedData, checkpoint: Path, subset: str
) -> list[str]:
    """The command that evaluates a checkpoint on one subset.

    fairseq-generate with corpus BLEU (beam 5), fairseq-eval-lm, or fairseq-validate.
    """
    tools = {"translation": "generate", "language_modeling": "eval-lm", "masked_lm": "validate"}
    command = _with_checkpoint(tools[config.task], data, checkpoint)
    if config.task == "masked_lm":
        command += ["--task", "masked_lm", "--criterion", "masked_lm"]
        return [*command, "--valid-subset", subset, "--batch-size", "32"]
    if config.task == "language_modeling":
        tokens = config.arguments.get("tokens-per-sample", 512)
        command += ["--gen-subset", subset]
        return [*command, "--batch-size", "32", "--tokens-per-sample", str(tokens)]
    command += [*_decoding_flags(data, subset), "--scoring", "sacrebleu"]
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
    command += ["--task", config.task, "--valid-subset", subset]
    return [*command, "--batch-size", "32"]


def interactive_command(data: PreparedData, checkpoint: Path) -> list[str]:
    """The fairseq-interactive command that translates raw text, one sentence a line (beam 5).

    Text is cut into pieces by the data set's SentencePiece model, and put together again; without
    one it must be tokenised as the data set was.

    Args:
        data: a translation data set; of it only dictionaries and the SentencePiece model are read.
        checkpoint: of a translation model.
    """
    command = _with_checkpoint("interactive", data, checkpoint)
    command += ["--source-lang", data.languages[0], "--target-lang", data.languages[1]]
    return [*command, "--beam", "5", *_subword_flags(data)]


def decoding_command(config: TrainingConfig, data: PreparedData, checkpoint: Path) -> list[str]:
    """The fairseq-generate command that translates the validation set, to be timed.

    Raises:
        NasAttnError: the task is not translation.
    """
    if config.task != "translation":
        raise NasAttnError(f"decoding is timed for translation, not for {config.task}")
    return _with_checkpoint("generate", data, checkpoint) + _decoding_flags(data, "valid")


def convert_command(trained: Path, plan: AttentionPlan, data: PreparedData, out: Path) -> list[str]:
    """The command that turns a trained checkpoint into one of another plan."""
    command = ["nas-attn", "convert", str(trained), "--plan", plan.dumps()]
    return [*command, "--calibrate", str(data.folder), "--out", str(out), "--replace"]


def maximises(metric: str) -> bool:
    """Whether a validation metric is better when higher."""
    return metric in MAXIMISED


def check_metric(config: TrainingConfig, metric: str) -> list[Fault]:
    """What is wrong with a validation metric as objective of a training.

    A name that a criterion which is not in `LOGGED` may log passes.
    """
    message = _refused_metric(config, metric)
    return [Fault("objectives.loss", message)] if message else []


def _refused_metric(config: TrainingConfig, metric: str) -> str:
    """Why fairseq surely does not log a metric, and what to do; empty if it may."""
    if metric == "bleu":
        if config.task == "translation":
            return ""
        return f"bleu is for translation, not for {config.task}: take loss or ppl"
    criterion = _criterion(config)
    logged = LOGGED.get(criterion)
    if logged is None:
        return ""
    if criterion in LOGGED_BY_SENTENCE and _given(config).get("sentence-avg"):
        logged |= {"nll_loss"}
    if metric in logged:
        return ""
    offer = ", ".join(sorted(logged | ({"bleu"} if config.task == "translation" else set())))
    message = f"{criterion} does not log {metric!r}; it logs {offer}"
    if metric == "nll_loss":
        return f"{message}: take loss, which is in bits a token here"
    if metric == "accuracy" and criterion == "cross_entropy":
        grouped = "grouped_" if _given(config).get("criterion", criterion) != criterion else ""
        smoothed = f"{grouped}label_smoothed_cross_entropy"
        return f"{message}: set training.arguments.criterion to {smoothed}"
    return f"{message}: take one of these"


def shell_text(command: Sequence[str], threads: int | None = None) -> str:
    """A command as one line to paste into a shell.

    Args:
        command: the argument list.
        threads: CPU threads to run it with; sums differ in the last bits with their number.
    """
    prefix = "" if threads is None else f"OMP_NUM_THREADS={threads} "
    return prefix + shlex.join(command)


def with_value(command: Sequence[str], flag: str, value: str) -> list[str]:
    """A command whose flag has another value."""
    at = list(command).index(flag) + 1
    return [*command[:at], value, *command[at + 1 :]]


def last_epoch_and_update(config: TrainingConfig) -> tuple[int | None, int | None]:
    """Where a training ends; None where it is not limited."""
    given = _given(config)
    epoch, update = (int(given.get(name) or 0) for name in ("max-epoch", "max-update"))
    return epoch or None, update or None


def check_arguments(config: TrainingConfig) -> list[Fault]:
    """What fairseq's own parser, and we, find wrong with a training section."""
    key = "arguments"
    faults = [
        Fault(f"{key}.{name}", "is set by nas-attn itself; leave it out")
        for name in config.arguments
        if dashed(name) in RESERVED
    ]
    given = _given(config).keys()
    if not given & {"max-epoch", "max-update"}:
        faults.append(Fault(key, "give max-epoch or max-update, or a trial never ends"))
    if not given & {"max-tokens", "batch-size"}:
        faults.append(Fault(key, "give max-tokens or batch-size"))
    if architecture(config) not in _architectures():
        prefix = f"{BASELINE_SCHEME}_{FAMILIES[config.task]}"
        sizes = sorted(
            a.removeprefix(prefix + "_") for a in _architectures() if a.startswith(prefix)
        )
        offer = ", ".join(size for size in sizes if not size.startswith(("lm", prefix)))
        faults.append(Fault("size", f"fairseq has no size {config.size!r}; it has {offer}"))
    if faults:
        return faults
    try:
        args, unknown = _parse(architecture(config), [*_task_flags(config), *_flags(config)])
    except _Refused as error:
        return [_locate(str(error), config)]
    flags = [text for text in unknown if text.startswith("--")]
    if flags:
        return [
            Fault(f"{key}.{f.removeprefix('--')}", "fairseq-train has no such flag") for f in flags
        ]
    for side in ("encoder", "decoder"):
        width = getattr(args, f"{side}_embed_dim", None)
        heads = getattr(args, f"{side}_attention_heads", None)
        if width is not None and heads is not None and (heads < 1 or width % heads):
            message = f"{heads} heads do not divide a width of {width}"
            faults.append(Fault(f"{key}.{side}-attention-heads", message))
    return faults


def parse_arguments(arch: str, flags: Sequence[str]) -> argparse.Namespace:
    """Parse flags of fairseq-train for an architecture, with the architecture's defaults filled in.

    Raises:
        ValueError: fairseq refuses a flag; the message is fairseq's.
    """
    try:
        args, unknown = _parse(arch, flags)
    except _Refused as error:
        raise ValueError(str(error)) from None
    if unknown:
        raise ValueError(f"fairseq-train has no flag {' '.join(unknown)}")
    return args


def training_arguments(config: TrainingConfig) -> argparse.Namespace:
    """The checked training section as fairseq's arguments."""
    return parse_arguments(architecture(config), [*_task_flags(config), *_flags(config)])


class _Refused(Exception):
    """fairseq's parser gave up; the message is what it printed last."""


def _parse(arch: str, flags: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    from fairseq import options

    import fairseq_plugin  # noqa: F401  registers the architectures

    argv = ["DATA", "--arch", arch, *flags]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed: tuple[argparse.Namespace, list[str]] = options.parse_args_and_arch(
                options.get_training_parser(), argv, parse_known=True
            )
    except SystemExit:
        lines = printed.getvalue().strip().splitlines() or ["refused without a word"]
        raise _Refused(lines[-1].partition("error: ")[2] or lines[-1]) from None
    return parsed


def _architectures() -> list[str]:
    from fairseq.models import ARCH_MODEL_REGISTRY

    import fairseq_plugin  # noqa: F401  registers the architectures

    return list(ARCH_MODEL_REGISTRY)


def _locate(message: str, config: TrainingConfig) -> Fault:
    """Point fairseq's message at the argument that it names."""
    for name in config.arguments:
        if f"--{dashed(name)}:" in message or f"--{dashed(name)}/" in message:
            text = message.partition(": ")[2] or message
            return Fault(f"arguments.{name}", f"fairseq-train says: {text}")
    return Fault("arguments", f"fairseq-train says: {message}")


def _task_flags(config: TrainingConfig) -> list[str]:
    return ["--task", f"reported_{config.task}"]


def _flags(config: TrainingConfig) -> list[str]:
    flags = []
    for name, value in config.arguments.items():
        if value is False:
            continue
        flags.append(f"--{dashed(name)}")
        if value is not True:
            flags.append(str(value))
    return flags


def _metric_flags(config: TrainingConfig, data: PreparedData, metric: str) -> list[str]:
    """What makes fairseq log a metric and keep the best by it, as far as it is not given."""
    flags = ["--maximize-best-checkpoint-metric"] if maximises(metric) else []
    wanted: list[tuple[str, str | None]] = []
    if metric == "bleu":
        wanted += BLEU_FLAGS
        if data.sentencepiece_model.is_file():
            wanted.append(("eval-bleu-remove-bpe", "sentencepiece"))
    elif metric == "accuracy" and "accuracy" in LOGGED.get(_criterion(config), ()):
        wanted.append(("report-accuracy", None))
    given = _given(config)
    for name, value in wanted:
        if given.get(name, False) is False:
            flags += [f"--{name}"] if value is None else [f"--{name}", value]
    return flags


def _with_checkpoint(tool: str, data: PreparedData, checkpoint: Path) -> list[str]:
    command = [f"fairseq-{tool}", str(data.folder)]
    command += ["--user-dir", str(plugin_folder()), "--path", str(checkpoint)]
    return [*command, "--required-batch-size-multiple", "1"]


def _decoding_flags(data: PreparedData, subset: str) -> list[str]:
    flags = ["--gen-subset", subset]
    flags += ["--source-lang", data.languages[0], "--target-lang", data.languages[1]]
    return [*flags, "--batch-size", "64", "--beam", "5"]


def _subword_flags(data: PreparedData) -> list[str]:
    if not data.sentencepiece_model.is_file():
        return []
    return ["--bpe", "sentencepiece", "--sentencepiece-model", str(data.sentencepiece_model)]


def _criterion(config: TrainingConfig) -> str:
    """The criterion's name without the group constraint, which changes no validation."""
    return str(_given(config).get("criterion", "cross_entropy")).removeprefix("grouped_")


def _given(config: TrainingConfig) -> dict[str, Scalar]:
    return {dashed(name): value for name, value in config.arguments.items()}


def dashed(name: str) -> str:
    """The name of a flag as fairseq's help writes it, without the leading dashes."""
    return name.removeprefix("--").replace("_", "-")
