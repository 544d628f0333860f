"""Checkpoints as fairseq-train writes them, made without any training."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from nas_attn.engine.config import ExecutionConfig
from nas_attn.errors import UsageError
from nas_attn.fairseq_tools.arguments import parse_arguments
from nas_attn.fairseq_tools.convert import convert_checkpoint
from nas_attn.fairseq_tools.prune import prune_checkpoint
from nas_attn.fairseq_tools.vote import vote_on_data
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.study.sensitivity import target_of_checkpoint

of = AttentionChoice.of
PLAN = AttentionPlan.of({"encoder_self": of("multi_query")})
SIDE = {"embed-dim": 8, "ffn-embed-dim": 8, "attention-heads": 2, "layers": 1}
SIZES = {
    side: [f"--{side}-{name}={value}" for name, value in SIDE.items()]
    for side in ("encoder", "decoder")
}
State = dict[str, Any]
Change = Callable[[State], Any]


def arguments_of(arch: str, task: str, flags: list[str]) -> argparse.Namespace:
    return parse_arguments(arch, ["--task", task, "--max-tokens=512", *flags])


def state_of(
    data: Path, arch: str = "transformer", task: str = "translation", flags: list[str] | None = None
) -> State:
    """What fairseq-train writes, of a model far from its start."""
    from fairseq import tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    if flags is None:
        flags = [*SIZES["encoder"], *SIZES["decoder"]]
    args = arguments_of(arch, task, flags)
    args.data = str(data)
    config = convert_namespace_to_omegaconf(args)
    model = tasks.setup_task(config.task).build_model(config.model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_attn" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return written(config, model)


def written(config: Any, model: torch.nn.Module) -> State:
    """What fairseq-train writes of a model, after ten updates."""
    return {
        "args": None,
        "cfg": OmegaConf.to_container(config, resolve=True, enum_to_str=True),
        "model": dict(model.state_dict()),
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": "CrossEntropyCriterion",
                "optimizer_name": "Adam",
                "lr_scheduler_state": {"best": 3.0},
                "num_updates": 10,
            }
        ],
        "task_state": {},
        "extra_state": {"best": 3.0},
        "last_optimizer_state": {"much": torch.zeros(1000)},
    }


def copied(state: State) -> State:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: State = torch.load(buffer, weights_only=True)
    return loaded


def outputs(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    tokens, previous = torch.randint(4, 40, (2, 3, 7), generator=generator)
    lengths = torch.full((3,), 7)
    with torch.no_grad():
        scores: Tensor = model.float().eval()(tokens, lengths, previous)[0]
    return scores


def as_fairseq(path: Path, data: Path) -> Any:
    """The model as fairseq's own commands load it."""
    from fairseq import checkpoint_utils

    models, _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(path)], arg_overrides={"data": str(data)}
    )
    return models[0]


def refused_by_all(path: Path, data: Path, match: str) -> None:
    """Every command that reads a checkpoint refuses it, and leaves nothing behind."""
    before = sorted(path.parent.iterdir())
    out = path.parent / "out.pt"

    def sensitivity() -> None:
        target_of_checkpoint(
            path,
            data,
            "grouped_query",
            cost="non_embedding",
            runs=path.parent,
            execution=ExecutionConfig(),
        )

    for command in (
        lambda: convert_checkpoint(path, PLAN, out),
        lambda: prune_checkpoint(path, out),
        lambda: vote_on_data(path, data, {"keep": "pillars"}, refit=False),
        sensitivity,
    ):
        with pytest.raises(UsageError, match=match) as refused:
            command()
        assert len(str(refused.value)) < 1500
    assert sorted(path.parent.iterdir()) == before
