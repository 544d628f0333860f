"""What plans are weighed by: names of costs, counts of parameters, how conversions are scored.

Commands offer these names and records hold these counts, so nothing slow is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

KnownCost = Literal[
    "attention",
    "non_embedding",
    "total",
    "effective",
    "cache_bytes",
    "source_cache_bytes",
    "flops",
]
"""Parameters of four kinds, bytes of keys and values kept for a generated token and for a token of
the source, operations a sentence."""
KNOWN_COSTS: tuple[str, ...] = get_args(KnownCost)
"""Known before training: the counts of `ModelSize`, and those of `CostModel`."""
PredictedCost = Literal[KnownCost, "decoding_microseconds"]
"""And microseconds a sentence, of decoding, by a table of modules that were timed."""
MeasuredCost = Literal["decoding_seconds", "peak_memory"]
MEASURED_COSTS: tuple[str, ...] = get_args(MeasuredCost)
"""Measured on the trained model, and in its training."""
Cost = Literal[KnownCost, MeasuredCost]
"""What a plan fixes before any training, or what is measured in it (MiB) or after it (seconds)."""
Scores = Literal["measured", "gradient", "auto"]
"""How single conversions are scored."""
FurtherMetric = Literal["bleu"]
"""What recommended plans may be measured by beside the loss."""
NO_LIMITS: Mapping[str, float] = {}
"""Limits of costs that leave all plans in."""
MAXIMISED = frozenset({"bleu", "accuracy"})
"""Validation metrics that are better when higher; all others are better when lower."""


def maximises(metric: str) -> bool:
    """Whether a validation metric is better when higher."""
    return metric in MAXIMISED


class ModelSize(NamedTuple):
    """Parameters of a whole model, shared ones counted once."""

    attention: int
    """Projections, mixing, embeddings and biases of attention, output projections included."""
    non_embedding: int
    """All but token and position tables and the projection onto the vocabulary."""
    total: int
    effective: int | None
    """`total` less the dead and redundant parameters of attention; None in records without it."""

    def acting(self, name: str) -> int | None:
        """One of the other counts, less the dead and redundant parameters of attention."""
        if name == "effective" or self.effective is None:
            return self.effective
        count: int = getattr(self, name)
        return count - (self.total - self.effective)
