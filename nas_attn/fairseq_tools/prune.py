"""Physical pruning of fairseq checkpoints: what training has masked is cut out of the weights."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nas_attn.attention.pruning import Phase, PrunableAttention, check_vote
from nas_attn.attention.registry import get_scheme
from nas_attn.errors import UsageError
from nas_attn.fairseq_tools.checkpoints import (
    check_out,
    read_checkpoint,
    save_checkpoint,
    without_training,
)
from nas_attn.fairseq_tools.trained import NO_PLAN, build_trained, load_trained, plan_of
from nas_attn.plan import AttentionChoice, AttentionPlan

LAYER = re.compile(
    r"(.*?(encoder|decoder)\.(?:\w+\.)*layers\.(\d+)\.(self_attn|encoder_attn)\.attention)\..*"
)
FAIRSEQ_BUFFERS = (".version", "._float_tensor")


@dataclass(frozen=True)
class Pruned:
    """What pruning made of a checkpoint.

    Args:
        plan: Plan of the smaller model.
        parts: Place of each pruned module, and how many parts stay of how many.
        parameters: Parameters of the model before and after.
        bytes: Bytes of the files.
    """

    plan: AttentionPlan
    parts: dict[str, tuple[int, int]]
    parameters: tuple[int, int]
    bytes: tuple[int, int]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of the plugin's models; only plain data is unpickled.

    Raises:
        UsageError: it is none, or does not hold the weights of its plan.
    """
    state = read_checkpoint(path)
    arguments = state["cfg"]["model"]
    if isinstance(arguments, dict):
        state["cfg"]["model"] = Namespace(**arguments)
    plan_of(state["cfg"]["model"], path)
    return state


def prune_checkpoint(
    path: Path,
    out: Path,
    masked: tuple[AttentionPlan, Mapping[str, Tensor]] | None = None,
) -> Pruned:
    """Write a checkpoint without what training has masked; it computes the same.

    The optimiser's state is left out. The plan of the smaller model is stored in the checkpoint, so
    fairseq's commands load it as any other.

    Args:
        path: Checkpoint of a training whose vote is over.
        out: Path of the smaller one.
        masked: Plan and state dictionary to take in place of the checkpoint's own (see
            `nas_attn.fairseq_tools.vote`).

    Raises:
        UsageError: there is nothing to prune, or the vote is not over.
    """
    check_out(out, path)
    trained = load_trained(path)
    if trained.is_stock:
        raise UsageError(NO_PLAN.format(path))
    state, arguments = trained.state, trained.arguments
    own = trained.plan, state["model"]
    plan, model, parts = prune_model(*(masked or own))
    before, after = _count(state["model"]), _count(model)
    arguments.attention_plan = plan.dumps()
    state["model"] = model
    build_trained(arguments, model, Path("the pruned model"))
    without_training(path, state)
    save_checkpoint(state, out)
    return Pruned(plan, parts, (before, after), (path.stat().st_size, out.stat().st_size))


def prune_model(
    plan: AttentionPlan, weights: Mapping[str, Tensor]
) -> tuple[AttentionPlan, dict[str, Tensor], dict[str, tuple[int, int]]]:
    """Cut what is masked out of a fairseq model's state dictionary.

    Args:
        plan: Plan of the model.
        weights: State dictionary of the model.

    Returns:
        Plan and state dictionary of the smaller model, and how many parts stay, of how many, at
        each place.

    Raises:
        UsageError: there is nothing to prune, the vote is not over, or its state is impossible.
    """
    model = dict(weights)
    parts: dict[str, tuple[int, int]] = {}
    phases = set()
    sites = {}
    for site, prefixes in _modules(weights).items():
        choices = list(plan.layers(site, len(prefixes)))
        for layer, prefix in sorted(prefixes.items()):
            own = _below(weights, prefix)
            if "kept" not in own:
                continue
            place = f"{site}.{layer}"
            phase = _phase(own, prefix, place)
            phases.add(phase.name.lower())
            if phase != Phase.SETTLED:
                continue
            choices[layer], small = _cut(choices[layer], own, place)
            for name in own:
                del model[f"{prefix}.{name}"]
            model |= {f"{prefix}.{name}": tensor for name, tensor in small.items()}
            parts[place] = (int(own["kept"].sum()), own["kept"].numel())
        sites[site] = choices
    if not parts:
        why = (
            f"the vote is not over ({', '.join(sorted(phases))})"
            if phases
            else "no scheme of its plan prunes"
        )
        raise UsageError(f"nothing is pruned in this checkpoint: {why}")
    return AttentionPlan.of(sites), model, parts


def _modules(weights: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """For each site, the prefixes of its attention modules in a state dictionary, by layer."""
    modules: dict[str, dict[int, str]] = {}
    for name in weights:
        match = LAYER.fullmatch(name)
        if match:
            site = "encoder_decoder" if match[4] == "encoder_attn" else f"{match[2]}_self"
            modules.setdefault(site, {})[int(match[3])] = match[1]
    return modules


def _phase(own: Mapping[str, Tensor], prefix: str, place: str) -> Phase:
    """How far a module's vote is."""
    check_vote(prefix, own)
    try:
        return Phase(int(own["schedule"][0]))
    except (LookupError, ValueError):
        raise UsageError(f"{place} has no state of a vote that could be") from None


def _cut(
    choice: AttentionChoice, own: Mapping[str, Tensor], place: str
) -> tuple[AttentionChoice, Mapping[str, Tensor]]:
    """The choice and the weights of a module without what its vote has masked."""
    scheme, options = choice.scheme, dict(choice.options)
    module = get_scheme(scheme).module
    if not issubclass(module, PrunableAttention):
        raise UsageError(f"{place} is {scheme}, but its weights are of a vote")
    try:
        small, options = module.cut(own, options)
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(f"the weights of {place} do not fit together: {error}") from None
    return AttentionChoice.of(scheme, **options), small


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state dictionary that belongs to a module."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}


def _count(weights: Mapping[str, Tensor]) -> int:
    """Parameters in a state dictionary, shared ones once; buffers are whole numbers or single."""
    unique = {
        (tensor.data_ptr(), tensor.shape): tensor.numel()
        for name, tensor in weights.items()
        if tensor.is_floating_point() and tensor.dim() and not name.endswith(FAIRSEQ_BUFFERS)
    }
    return sum(unique.values())
