"""What a search weighs: names, directions, and points to compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optuna.study import StudyDirection

from nas_attn.engine.config import ObjectivesConfig

PEAK_MEMORY = "peak_memory"
"""The cost that every training reports by itself: MiB of a GPU, or on a CPU of the machine."""


@dataclass(frozen=True, kw_only=True)
class Objectives:
    """The objectives of a study.

    Args:
        metric: The metric of quality.
        maximise: Whether it is better when higher (BLEU, accuracy).
        costs: Names of the costs, all minimised; the first is known before training.
        limits: The most that a plan may cost, by name.
    """

    metric: str
    maximise: bool
    costs: tuple[str, ...]
    limits: Mapping[str, float]

    @classmethod
    def of(cls, config: ObjectivesConfig, *, maximise: bool) -> Objectives:
        return cls(
            metric=config.metric,
            maximise=maximise,
            costs=tuple(config.costs),
            limits={str(name): limit for name, limit in config.limits.items()},
        )

    @property
    def primary_cost(self) -> str:
        """The cost that trials are spread over."""
        return self.costs[0]

    @property
    def quality(self) -> str:
        """The measure of quality in words."""
        return f"validation {self.metric}" + (" (higher is better)" if self.maximise else "")

    @property
    def directions(self) -> tuple[StudyDirection, ...]:
        """As Optuna has them."""
        first = StudyDirection.MAXIMIZE if self.maximise else StudyDirection.MINIMIZE
        return (first, *[StudyDirection.MINIMIZE] * len(self.costs))

    def point(self, loss: float, costs: Mapping[str, float]) -> tuple[float, ...]:
        """A trial as a point of which every coordinate is better when lower.

        A cost that is not known yet is left out of the comparison by being zero for all.
        """
        quality = -loss if self.maximise else loss
        return (quality, *(float(costs.get(name, 0.0)) for name in self.costs))

    def violated_limit(self, costs: Mapping[str, float], *, when: str = "") -> str | None:
        """Which limit a plan breaks, in words; None if it keeps them all.

        Args:
            costs: Costs of the plan.
            when: Text put before the words, such as when it costs that.
        """
        for name, limit in self.limits.items():
            if costs[name] > limit:
                return f"{when}{costs[name]:,} {name} are more than the limit of {limit:,.0f}"
        return None
