"""A trained attention module as what conversions start from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from nas_attn.attention import Attention
from nas_attn.conversion.maps import HeadMatrices, maps_of
from nas_attn.conversion.metric import InputStatistics, RecordedCall, run
from nas_attn.errors import PlanError


class ConversionSource:
    """A trained module and what it was called with, prepared once for many conversions.

    Args:
        trained: Trained module of any scheme; not changed.
        calls: Recorded calls of it; empty for conversions by weights alone.

    Raises:
        PlanError: Weights or inputs are no numbers.
    """

    def __init__(self, trained: Attention, calls: Sequence[RecordedCall] = ()) -> None:
        self.trained = trained
        self.reference = copy.deepcopy(trained).to("cpu", torch.float64).eval()
        _check_finite(self.reference)
        self.calls = [call.to(torch.float64) for call in calls]
        if not all(call.is_finite() for call in self.calls):
            raise PlanError(
                "on the data, its inputs are infinite or not a number where nothing is padding"
            )

    @cached_property
    def maps(self) -> HeadMatrices:
        """What each head computes."""
        return maps_of(self.reference)

    @cached_property
    def metric(self) -> InputStatistics:
        """What counts of its inputs."""
        if not self.calls:
            return InputStatistics.of_weights(self.reference)
        return InputStatistics.of_calls(self.reference, self.calls)

    @cached_property
    def outputs(self) -> list[Tensor]:
        """Outputs (N, embed_dim) of each call, of queries that count."""
        with torch.no_grad():
            return [run(self.reference, call)[call.valid_queries] for call in self.calls]


def _check_finite(module: Attention) -> None:
    """Refuse weights that are no numbers.

    Raises:
        PlanError: Some are not.
    """
    for name, parameter in module.named_parameters():
        wrong = int((~parameter.isfinite()).sum())
        if wrong:
            raise PlanError(
                f"{wrong} of the {parameter.numel()} weights {name} are infinite or not a number"
            )
