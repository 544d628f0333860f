"""What fairseq's parser made of a training section, and whether it can train."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from nas_attn.config_model import Scalar
from nas_attn.errors import ConfigIssue
from nas_attn.fairseq_tools.flags import ALIASES, dashed, given, words_of

CHOSEN = ("criterion", "optimizer", "lr-scheduler")
"""Flags that choose a part of a training, which has flags of its own."""
ONE_RATE = ("cosine", "inverse_sqrt", "reduce_lr_on_plateau", "tri_stage", "triangular")
"""Schedules that take one learning rate."""


def compare_parsed(
    parser: argparse.ArgumentParser, own: Mapping[str, Scalar], arguments: Mapping[str, Scalar]
) -> Iterator[ConfigIssue]:
    """Where what is parsed is not what was said, and nothing else.

    Args:
        parser: Parser of fairseq, with the flags of all that the arguments choose.
        own: Arguments that nas-attn adds.
        arguments: Arguments of a training, which passed `check_flags`.
    """
    named = given(arguments)
    as_given = {ALIASES.get(dashed(name), dashed(name)): name for name in arguments}
    actions = {option: action for action in parser._actions for option in action.option_strings}
    expected = {action.dest: _default(action) for action in actions.values()}
    for flag, value in {**own, **named}.items():
        key = f"arguments.{as_given.get(flag, flag)}"
        action = actions.get(f"--{flag}")
        if action is None:
            yield ConfigIssue(key, _whose(flag, named))
        elif (action.nargs == 0) != isinstance(value, bool) and action.nargs != "?":
            yield ConfigIssue(key, "takes no value" if action.nargs == 0 else "needs a value")
        else:
            expected[action.dest] = _as_said(action, value)
    parsed = vars(parser.parse_known_args(["DATA", *words_of(own), *words_of(arguments)])[0])
    for name, value in expected.items():
        if parsed.get(name) != value and name != argparse.SUPPRESS:
            message = f"fairseq would read {parsed.get(name)!r}, not {value!r}"
            yield ConfigIssue(f"arguments.{as_given.get(dashed(name), dashed(name))}", message)


def _default(action: argparse.Action) -> Any:
    if action.default is argparse.SUPPRESS:
        return None
    if isinstance(action.default, str) and callable(action.type):
        try:
            return action.type(action.default)
        except ValueError:  # what must be given
            return None
    return action.default


def _as_said(action: argparse.Action, value: Scalar) -> Any:
    if isinstance(value, bool):
        if action.nargs == 0:
            # What is off already is not said.
            return None if not value and action.default is argparse.SUPPRESS else value
        return action.const if value else _default(action)
    convert: Any = action.type or str
    return convert(str(value))


def _whose(flag: str, named: Mapping[str, Scalar]) -> str:
    """Why fairseq's parser does not know a flag that it has in other trainings."""
    from fairseq.registry import REGISTRIES

    for part in CHOSEN:
        registry = REGISTRIES[part.replace("-", "_")]["registry"]
        owners = [name for name, cls in registry.items() if f"--{flag}" in _flags_of(cls)]
        if not owners:
            continue
        fallback = "cross_entropy" if part == "criterion" else "fixed"
        chosen = named.get(part, "none" if part == "optimizer" else fallback)
        if flag.startswith("teacher-"):
            return (
                "is for fine-tuning with a teacher: set search.warm_start.teacher to baseline, and "
                f"{flag} in search.warm_start.arguments"
            )
        meant = f"grouped_{chosen}" if f"grouped_{chosen}" in owners else owners[0]
        return (
            f"belongs to another {part.replace('-', ' ')}, not to {chosen}: set "
            f"training.arguments.{part} to {meant}, or leave it out"
        )
    return "is a flag of fairseq-train, but not of this task and model"


def _flags_of(cls: Any) -> set[str]:
    """The flags that a criterion, an optimizer or a schedule adds."""
    from fairseq.dataclass.utils import gen_parser_from_dataclass

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    if hasattr(cls, "add_args"):
        cls.add_args(parser)
    elif hasattr(cls, "__dataclass"):
        gen_parser_from_dataclass(parser, getattr(cls, "__dataclass")())
    return {option for action in parser._actions for option in action.option_strings}


def check_training(
    args: argparse.Namespace, arguments: Mapping[str, Scalar]
) -> Iterator[ConfigIssue]:
    """What would fail once a training begins, or never come.

    Args:
        args: Arguments as fairseq parsed them.
        arguments: Arguments as the study has them.
    """
    as_given = {ALIASES.get(dashed(name), dashed(name)): name for name in arguments}

    def fault(flag: str, message: str) -> ConfigIssue:
        return ConfigIssue(f"arguments.{as_given.get(flag, flag)}", message)

    if args.optimizer is None:
        yield fault("optimizer", "is missing: fairseq-train needs one, such as adam")
    yield from (fault(flag, message) for flag, message in _schedule(args))
    if args.criterion.endswith("adaptive_loss") and not args.adaptive_softmax_cutoff:
        yield fault("criterion", "adaptive_loss needs adaptive-softmax-cutoff")
    if args.criterion.endswith("adaptive_loss") and args.ddp_backend in ("c10d", "pytorch_ddp"):
        message = f"fairseq's adaptive_loss refuses {args.ddp_backend}: set it to legacy_ddp"
        yield fault("ddp-backend", message)
    for flag, end in (("vote-at-epoch", "max-epoch"), ("vote-at-update", "max-update")):
        when, last = (getattr(args, name.replace("-", "_"), 0) or 0 for name in (flag, end))
        if last and when > last:
            yield fault(flag, f"the training ends before: {end} is {last}")


def _schedule(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """What the schedule of the learning rate refuses as it is built."""
    name = args.lr_scheduler
    if name in ONE_RATE and len(args.lr) > 1:
        yield "lr", f"the lr-scheduler {name} takes one learning rate"
    if name == "inverse_sqrt" and args.warmup_updates < 1:
        yield "warmup-updates", "must be at least 1 for the lr-scheduler inverse_sqrt"
    if name == "polynomial_decay" and not (args.total_num_update or args.max_update):
        yield "total-num-update", "is missing: where polynomial_decay ends, or give max-update"
    if name == "cosine" and args.lr_period_updates <= 0 and not args.max_update:
        yield "lr-period-updates", "is missing: how long cosine's period is, or give max-update"
    if name == "triangular" and args.max_lr <= args.lr[0]:
        yield "max-lr", f"must be more than lr for the lr-scheduler triangular: {args.lr[0]}"
    if name == "tri_stage":
        if args.phase_ratio is None:
            if not args.warmup_steps + args.hold_steps + args.decay_steps:
                yield "phase-ratio", "is missing: tri_stage takes it, or its numbers of steps"
        elif sum(args.phase_ratio) != 1:
            yield "phase-ratio", f"must add up to 1, not to {sum(args.phase_ratio)}"
        elif not args.max_update:
            yield "phase-ratio", "needs max-update"
