"""What a training's flags ask of the GPUs that its trials get, and what several GPUs change."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from nas_attn.config_model import Scalar
from nas_attn.errors import ConfigIssue
from nas_attn.fairseq_tools.flags import dashed, given

WAITING = ("pytorch_ddp", "c10d")
"""Backends of fairseq's data parallelism that wait for the gradient of every parameter."""
HALF = ("fp16", "memory-efficient-fp16", "amp")


def count_processes(gpus: float) -> int:
    """Processes of one training: fairseq starts one for each GPU that it sees.

    Each takes batches of its own, so an update is made of so many times `update-freq` batches.

    Args:
        gpus: GPUs of a trial (`resources.gpus`); trials that share one, or have none, have one
            process.
    """
    return max(1, int(gpus))


def check_devices(
    args: argparse.Namespace, arguments: Mapping[str, Scalar], gpus: float
) -> Iterator[ConfigIssue]:
    """Flags that cannot train on the GPUs of a trial, or would silently do something else.

    Args:
        args: Training as fairseq parsed it.
        arguments: Arguments as the study has them.
        gpus: GPUs of a trial.
    """
    named = given(arguments)
    told = {next(iter(given({name: value}))): name for name, value in arguments.items()}

    def fault(flag: str, message: str) -> ConfigIssue:
        return ConfigIssue(f"arguments.{told.get(flag, flag)}", message)

    asked = [flag for flag in HALF if named.get(flag)]
    if args.cpu and gpus > 0:
        message = f"trains on the CPU, but resources.gpus gives each trial {gpus:g}: set it to 0"
        yield fault("cpu", message)
    elif asked and gpus == 0:
        yield fault(
            asked[0],
            "needs a GPU, and without one fails or trains in float32: set resources.gpus, or leave "
            "it out",
        )
    if "amp" in asked and len(asked) > 1:
        yield fault("amp", f"is another way of the same as {asked[0]}: leave one of them out")
    dropped = [flag for flag in LAYERDROP.values() if getattr(args, _name(flag), 0.0)]
    waits = args.ddp_backend in WAITING and not args.find_unused_parameters
    if count_processes(gpus) > 1 and waits and dropped:
        yield fault(
            dropped[0],
            f"leaves layers without gradients, which ddp-backend {args.ddp_backend} waits for on "
            "several GPUs: set training.arguments.ddp-backend to legacy_ddp",
        )


LAYERDROP = {
    "encoder_self": "encoder-layerdrop",
    "decoder_self": "decoder-layerdrop",
    "encoder_decoder": "decoder-layerdrop",
}
"""The flag that drops layers at random, for each site."""


def drops_layers(site: str, arguments: Mapping[str, Scalar]) -> str | None:
    """The argument that drops layers at a site in training, as it is written, or None."""
    for name, value in arguments.items():
        if dashed(name) == LAYERDROP.get(site) and float(value):
            return name
    return None


def _name(flag: str) -> str:
    return flag.replace("-", "_")
