"""Criterions with a teacher: `distilled_NAME` for the criterions of fairseq in `TAUGHT`.

In training the loss is (1 - W) * NAME + W * T^2 * KL, where W is `--teacher-weight` and T
`--teacher-temperature`. KL is the divergence of the student's distribution from that of the
teacher, both of logits divided by T (Hinton et al. 2015), in nats and summed over the tokens that
NAME counts, as NAME itself is; T^2 keeps the size of its gradient whatever T is. The log of
training has NAME's own loss as ever, and beside it `teacher_kl`: KL a token, in bits.

In validation, and where a vote runs the model without any gradient, the teacher is not asked and
the loss is that of NAME alone.

The teacher is loaded as training begins: a checkpoint of a distilled training is validated,
converted or exported without one.
"""

# No `from __future__ import annotations`: fairseq reads the types of flags from the dataclass.

import dataclasses
import math
from typing import Any, Optional, Self

import torch
from fairseq.criterions import (
    CRITERION_DATACLASS_REGISTRY,
    CRITERION_REGISTRY,
    FairseqCriterion,
    register_criterion,
)
from fairseq.logging import metrics
from torch import Tensor, nn
from torch.nn import functional

from nas_attn.errors import UsageError

from .teacher import Teacher

TAUGHT = ("cross_entropy", "label_smoothed_cross_entropy", "masked_lm")
"""Criterions that call the model once, for logits over the whole dictionary."""


@dataclasses.dataclass
class TeacherConfig:
    """Flags of every distilled criterion."""

    teacher: Optional[str] = dataclasses.field(  # noqa: UP045  fairseq knows no other way
        default=None,
        metadata={
            "help": "checkpoint of the teacher: a model of fairseq's or of the plugin's, trained "
            "for the same task with the same dictionaries"
        },
    )
    teacher_weight: float = dataclasses.field(
        default=0.5,
        metadata={
            "help": "W, from 0 to 1: the loss is (1 - W) times the criterion's own and W times "
            "the teacher's, KL(teacher || student) T^2, both summed over tokens"
        },
    )
    teacher_temperature: float = dataclasses.field(
        default=1.0,
        metadata={"help": "T, by which the logits of both are divided before the softmax"},
    )


class Distillation(FairseqCriterion):
    """Mix-in before a fairseq criterion; adds `teacher_kl` to the log of training."""

    teacher: Teacher
    teacher_weight: float
    teacher_temperature: float

    @classmethod
    def build_criterion(cls, cfg: Any, task: Any) -> Self:
        criterion: Self = super().build_criterion(cfg, task)
        weight, temperature = cfg.teacher_weight, cfg.teacher_temperature
        if not 0 <= weight <= 1:
            raise UsageError(f"--teacher-weight must be from 0 to 1, but is {weight}")
        if not 0 < temperature < math.inf:
            raise UsageError(f"--teacher-temperature must be above 0, but is {temperature}")
        criterion.teacher_weight, criterion.teacher_temperature = weight, temperature
        criterion.teacher = teacher = Teacher(cfg.teacher, task)
        begin = task.begin_epoch

        def begin_epoch(epoch: int, model: nn.Module) -> None:
            """Called by fairseq before the first batch, also when a training is continued."""
            teacher.meet(model)
            begin(epoch, model)

        task.begin_epoch = begin_epoch
        return criterion

    def forward(self, model: nn.Module, sample: Any, reduce: bool = True) -> Any:
        """The loss with the teacher's part; arguments and returns are fairseq's."""
        if not (model.training and reduce and torch.is_grad_enabled()):
            return super().forward(model, sample, reduce)
        calls: list[tuple[Any, dict[str, Any], Any]] = []
        hook = model.register_forward_hook(
            lambda _, args, named, output: calls.append((args, named, output)), with_kwargs=True
        )
        try:
            loss, sample_size, log = super().forward(model, sample, reduce)
        finally:
            hook.remove()
        args, named, output = calls[-1]
        valid = self._valid(model, sample, named, output)
        taught = self.teacher(model, *args, **named)
        distance = divergence(output[0][valid], taught[valid], self.teacher_temperature)
        weight = self.teacher_weight
        loss = (1 - weight) * loss + weight * self.teacher_temperature**2 * distance
        log = {**log, "teacher_kl": distance.data, "teacher_tokens": valid.sum()}
        return loss, sample_size, log

    def _valid(self, model: Any, sample: Any, named: dict[str, Any], output: Any) -> Tensor:
        """Which positions of the model's output the criterion counts."""
        valid: Tensor = model.get_targets(sample, output).ne(self.padding_idx)
        valid[:, : getattr(self, "ignore_prefix_size", 0)] = False
        masked = named.get("masked_tokens")  # RoBERTa's output is of these alone
        return valid if masked is None else valid[masked]

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        super().reduce_metrics(logging_outputs)
        tokens = sum(log.get("teacher_tokens", 0) for log in logging_outputs)
        if tokens:
            total = sum(log.get("teacher_kl", 0.0) for log in logging_outputs)
            metrics.log_scalar("teacher_kl", total / tokens / math.log(2), tokens, round=4)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) in nats, summed over tokens.

    Args:
        student: Logits (tokens, types), of any scale.
        teacher: Logits of the teacher, of the same shape.
        temperature: Number that both are divided by.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    ours, theirs = (
        functional.log_softmax(logits.to(dtype) / temperature, dim=-1)
        for logits in (student, teacher)
    )
    return functional.kl_div(ours, theirs, reduction="sum", log_target=True)


def _register(name: str) -> None:
    inner, config = CRITERION_REGISTRY[name], CRITERION_DATACLASS_REGISTRY[name]
    bases = (config, TeacherConfig)
    distilled = dataclasses.make_dataclass(f"Distilled{config.__name__}", [], bases=bases)
    criterion = type(f"Distilled{inner.__name__}", (Distillation, inner), {})
    register_criterion(f"distilled_{name}", dataclass=distilled)(criterion)


for _name in TAUGHT:
    _register(_name)
