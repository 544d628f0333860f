"""A model of the plugin as a checkpoint of fairseq's own Transformer, which needs no plugin."""

from __future__ import annotations

import copy
import dataclasses
import re
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nas_attn.attention.registry import SCHEMES
from nas_attn.conversion.expansion import expand
from nas_attn.errors import PlanError, UsageError
from nas_attn.fairseq_tools.flags import plain_criterion
from nas_attn.fairseq_tools.trained import IN_ATTENTION, TrainedModel

FAMILY = re.compile(r".*?_(transformer_lm|transformer|roberta)(?:_.*)?")
"""An architecture of the plugin, and the model of fairseq's that it is a size of."""


def stock_state(trained: TrainedModel) -> dict[str, Any]:
    """The checkpoint that fairseq-train would write of a model, were its attention fairseq's own.

    Its plan is written out as multi-head attention (see `nas_attn.conversion.expansion`). Arguments
    of the model are a namespace that says all that its task needs as well, as fairseq-train writes
    it. Nothing is left of the training.

    Args:
        trained: Model of the plugin, which is not changed.

    Raises:
        UsageError: The plan has no such form; names the places and says why.
    """
    state = trained.state
    cfg = copy.deepcopy(state["cfg"])
    cfg["model"] = _arguments(trained, cfg)
    cfg["task"]["_name"] = cfg["model"].task
    criterion = cfg.get("criterion")
    if isinstance(criterion, dict) and criterion.get("_name"):
        criterion["_name"] = cfg["model"].criterion = plain_criterion(str(criterion["_name"]))
    history = {"criterion_name": "", "optimizer_name": "", "num_updates": 0}
    return {
        "args": None,
        "cfg": cfg,
        "model": stock_weights(trained),
        "criterion": None,
        "optimizer_history": [history | {"lr_scheduler_state": {"best": None}}],
        "task_state": {},
        "extra_state": {},
        "last_optimizer_state": None,
    }


def stock_weights(trained: TrainedModel) -> dict[str, Tensor]:
    """Weights of a model by the names of fairseq's own, its attention written out as multi-head.

    Raises:
        UsageError: The plan has no such form; names the places and says why.
    """
    expanded, refused = {}, []
    for (site, layer), adapter in trained.modules.items():
        try:
            expanded[id(adapter)] = expand(adapter.attention)
        except PlanError as error:
            choice = trained.plan.layers(site, trained.layers()[site])[layer]
            refused.append(f"{site} layer {layer}, {choice}: {error}")
    if refused:
        raise UsageError(
            "the plan cannot be written as fairseq's own multi-head attention: "
            + "; ".join(refused)
        )
    weights = {
        name: tensor
        for name, tensor in trained.model.state_dict().items()
        if IN_ATTENTION.fullmatch(name) is None
    }
    for name, module in trained.model.named_modules():
        if id(module) in expanded:
            parts = expanded[id(module)].state_dict().items()
            weights |= {f"{name}.{part}": tensor for part, tensor in parts}
    return weights


def _arguments(trained: TrainedModel, cfg: Mapping[str, Any]) -> Namespace:
    """Arguments of fairseq's own model, and of its task where they lack some."""
    given = dict(vars(cfg["model"]))
    arch = str(given["arch"])
    match = FAMILY.fullmatch(arch)
    if match is None:
        raise UsageError(f"{arch} is no architecture of the plugin")
    scheme = arch[: match.start(1) - 1]
    options = [field.name for field in dataclasses.fields(SCHEMES[scheme].options)]
    for name in ("attention_plan", *options):
        given.pop(name, None)
    task = cfg["task"] if isinstance(cfg["task"], dict) else vars(cfg["task"])
    return Namespace(
        **{
            **{name: value for name, value in task.items() if not name.startswith("_")},
            **given,
            "task": str(task["_name"]).removeprefix("reported_"),
            "arch": match[1],
            "_name": match[1],
        }
    )
