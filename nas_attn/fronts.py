"""Predicted fronts, of studies, of fairseq's checkpoints and of any PyTorch model.

front = nas_attn.predict_front(model, batches, loss, "inherited_per_layer", folder="front")
print(front.verdict)
smaller = front.convert(2)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from nas_attn import api
from nas_attn.errors import UsageError
from nas_attn.measures import NO_LIMITS, FurtherMetric, Scores
from nas_attn.study.form import Runs, StudyLike
from nas_attn.study.tree import Overrides
from nas_attn.workflows.defaults import CHECKS, POINTS
from nas_attn.workflows.events import Events

if TYPE_CHECKING:
    from torch import nn

    from nas_attn.study.spaces import SpaceLike
    from nas_attn.workflows.model_front import ModelFront
    from nas_attn.workflows.model_predictions import Loss
    from nas_attn.workflows.sensitivity import PredictedFront


@overload
def predict_front(
    model: nn.Module,
    data: Iterable[Any],
    loss: Loss,
    space: SpaceLike = ...,
    *,
    calibration: Iterable[Any] | None = ...,
    cost: str = ...,
    checks: int = CHECKS,
    points: int = POINTS,
    max_schemes: int | None = ...,
    keep_first_layer: bool = ...,
    limits: Mapping[str, float] = NO_LIMITS,
    second_cost: str | None = ...,
    distil: bool = ...,
    scores: Scores = ...,
    folder: str | Path | None = ...,
    name: str = ...,
    unit: str = ...,
    events: Events | None = ...,
) -> ModelFront: ...


@overload
def predict_front(
    model: StudyLike,
    *,
    data: str | Path | None = ...,
    space: str | None = ...,
    cost: str | None = ...,
    checks: int = CHECKS,
    points: int = POINTS,
    max_schemes: int | None = ...,
    keep_first_layer: bool = ...,
    limits: Mapping[str, float] = NO_LIMITS,
    second_cost: str | None = ...,
    distil: bool = ...,
    scores: Scores | None = ...,
    improve: int = ...,
    metric: FurtherMetric | None = ...,
    overrides: Overrides = ...,
    workers: int | None = ...,
    storage: str | None = ...,
    address: str | None = ...,
    runs: Runs = ...,
    events: Events | None = ...,
) -> PredictedFront: ...


def predict_front(
    model: Any, data: Any = None, loss: Any = None, *args: Any, **options: Any
) -> Any:
    """Predict the front over all plans of a space from one trained model.

    Single conversions are measured, what they add up to is tested, and the best plan at every size
    follows.

    Args:
        model: A PyTorch model whose attention `convert_model` takes over; or a study, whose
            baseline is trained if need be, or one of fairseq's checkpoints (`.pt`).
        data: Batches of validation data, as `loss` takes them; for a checkpoint its binarised data.
        loss: Function of a model and a batch that gives one loss for each example; studies and
            checkpoints have one.
        args: The space: name of a shipped one, path of a file, or, for a PyTorch model, what such a
            file holds.
        options: Of a PyTorch model those of `predict_model_front`, of studies and checkpoints those
            of `nas_attn.api.predict_front`.

    Returns:
        For a PyTorch model a `ModelFront`, which converts it to recommended plans, for the others a
        `PredictedFront`.

    Raises:
        ConfigError: Study or space is refused; lists everything wrong with it.
        PlanError: The model's attention cannot be converted.
        NasAttnError: Nothing can inherit, or nothing could be measured.
        UsageError: Something is missing, or does not go with the others.
    """
    if _is_study(model):
        if loss is not None or args:
            raise UsageError("a study or checkpoint has a loss of its own; name the space: space=")
        return api.predict_front(model, data=data, **options)
    if data is None or loss is None:
        raise UsageError("a PyTorch model needs data and a loss: predict_front(model, data, loss)")
    from nas_attn.workflows.model_front import predict_model_front

    return predict_model_front(model, data, loss, *args, **options)


def _is_study(model: Any) -> bool:
    """Whether it is no PyTorch model, for which torch need not be loaded."""
    return not hasattr(model, "named_modules")
