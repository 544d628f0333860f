"""fairseq's arguments of a training section, parsed and checked by fairseq's own parser."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from nas_attn.errors import ConfigIssue
from nas_attn.fairseq_tools.config import TrainingConfig
from nas_attn.fairseq_tools.flags import check_flags, dashed, given, without_refused, words_of
from nas_attn.fairseq_tools.parsed import compare_parsed

BASELINE_SCHEME = "multi_head"

FAMILIES = {
    "translation": "transformer",
    "language_modeling": "transformer_lm",
    "masked_lm": "roberta",
}
"""fairseq's model family of each task."""


def architecture(config: TrainingConfig) -> str:
    """The plugin's architecture; the plan is given apart, so its scheme is the baseline's."""
    family = FAMILIES[config.task]
    return f"{BASELINE_SCHEME}_{family}" + (f"_{config.size}" if config.size else "")


def last_epoch_and_update(config: TrainingConfig) -> tuple[int | None, int | None]:
    """Where a training ends; None where it is not limited."""
    named = given(config.arguments)
    epoch, update = (int(named.get(name) or 0) for name in ("max-epoch", "max-update"))
    return epoch or None, update or None


def check_arguments(config: TrainingConfig) -> list[ConfigIssue]:
    """What we, and then fairseq's own parser, find wrong with a training section."""
    key = "arguments"
    faults = list(check_flags(config.arguments, config.task))
    named = given(config.arguments)
    # fairseq takes 0 for no limit.
    if all(str(named.get(name, 0)) == "0" for name in ("max-epoch", "max-update")):
        faults.append(ConfigIssue(key, "give max-epoch or max-update, or a trial never ends"))
    if not named.keys() & {"max-tokens", "batch-size"}:
        faults.append(ConfigIssue(key, "give max-tokens or batch-size"))
    if architecture(config) not in _architectures():
        prefix = f"{BASELINE_SCHEME}_{FAMILIES[config.task]}"
        sizes = sorted(
            a.removeprefix(prefix + "_") for a in _architectures() if a.startswith(prefix)
        )
        offer = ", ".join(size for size in sizes if not size.startswith(("lm", prefix)))
        faults.append(ConfigIssue("size", f"fairseq has no size {config.size!r}; it has {offer}"))
    if faults:
        return faults
    try:
        args, parser = _parse(architecture(config), _parsed_words(config))
    except _Refused as error:
        return [_locate(str(error), config)]
    faults = list(compare_parsed(parser, {"task": f"reported_{config.task}"}, config.arguments))
    for side in ("encoder", "decoder"):
        width = getattr(args, f"{side}_embed_dim", None)
        heads = getattr(args, f"{side}_attention_heads", None)
        if width is not None and heads is not None and (heads < 1 or width % heads):
            message = f"{heads} heads do not divide a width of {width}"
            faults.append(ConfigIssue(f"{key}.{side}-attention-heads", message))
    return faults


def parse_arguments(arch: str, flags: Sequence[str]) -> argparse.Namespace:
    """Parse flags of fairseq-train for an architecture, with the architecture's defaults filled in.

    Raises:
        ValueError: fairseq refuses a flag; the message is fairseq's.
    """
    try:
        args, parser = _parse(arch, flags)
    except _Refused as error:
        raise ValueError(str(error)) from None
    unknown = parser.parse_known_args(["DATA", *flags])[1]
    if unknown:
        raise ValueError(f"fairseq-train has no flag {' '.join(unknown)}")
    return args


def training_arguments(config: TrainingConfig) -> argparse.Namespace:
    """The checked training section as fairseq's arguments."""
    return parse_arguments(architecture(config), _parsed_words(config))


class _Refused(Exception):
    """fairseq's parser gave up; the message is its own."""


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)


def _parse(arch: str, flags: Sequence[str]) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """fairseq's arguments, and its parser with the flags of all that is chosen."""
    from fairseq import options

    import fairseq_plugin  # noqa: F401  registers the architectures

    parser = options.get_training_parser()
    # Standard output and error belong to all threads, so they are not turned away meanwhile.
    parser.error = _refuse
    parser.print_help = lambda file=None: None
    try:
        args, _ = options.parse_args_and_arch(
            parser, ["DATA", f"--arch={arch}", *flags], parse_known=True
        )
    except SystemExit:
        raise _Refused("refused without a word") from None
    return args, parser


def _architectures() -> list[str]:
    from fairseq.models import ARCH_MODEL_REGISTRY

    import fairseq_plugin  # noqa: F401  registers the architectures

    return list(ARCH_MODEL_REGISTRY)


def _locate(message: str, config: TrainingConfig) -> ConfigIssue:
    """Point fairseq's message at the argument that it names."""
    for name in config.arguments:
        if f"--{dashed(name)}:" in message or f"--{dashed(name)}/" in message:
            text = message.partition(": ")[2] or message
            return ConfigIssue(f"arguments.{name}", f"fairseq-train says: {text}")
    return ConfigIssue("arguments", f"fairseq-train says: {message}")


def task_flag(config: TrainingConfig) -> str:
    """The flag of the plugin's task, which reports validations."""
    return f"--task=reported_{config.task}"


def _parsed_words(config: TrainingConfig) -> list[str]:
    # Of flags that no study may set, fairseq's parser must not see any, whoever asks.
    return [task_flag(config), *words_of(without_refused(config.arguments))]
