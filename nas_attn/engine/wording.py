"""What a driver's log calls trials: those beside a search have numbers of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nas_attn.trials.job import TrialResult


@dataclass(frozen=True)
class Wording:
    """How trials are spoken of.

    Args:
        noun: What one is called that is no trial of a search, such as `conversion`.
        change: Name of what is measured that says by how much its loss is above the baseline's.
    """

    noun: str = ""
    change: str = ""

    def name(self, number: int, count: int) -> str:
        """A trial by its number; one that is none of a search as the nth of so many."""
        return f"{self.noun} {number + 1} of {count}" if self.noun else f"trial {number}"

    def completed(self, result: TrialResult, costs: Mapping[str, float], axis: str) -> str:
        """What came of one: `3.9110, +0.0503, 1,167,528 total`."""
        change = result.measured.get(self.change)
        about = "" if change is None else f", {change:+.4f}"
        return f"{result.loss:.4f}{about}, {costs[axis]:,} {axis}"


OF_A_SEARCH = Wording()
