"""Costs, states and table rows in words, as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nas_attn.engine.objectives import Objectives
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.measures import ModelSize

if TYPE_CHECKING:
    from nas_attn.analysis.noise import Noise


def cost_words(name: str) -> str:
    """A cost in words."""
    if name in ModelSize._fields:
        return f"{name.replace('_', '-')} parameters"
    return {
        "cache_bytes": "KV-cache bytes per token",
        "source_cache_bytes": "KV-cache bytes per source token",
        "flops": "operations per sentence",
        "decoding_seconds": "decoding seconds per sentence",
        "decoding_microseconds": "decoding microseconds per sentence",
        "peak_memory": "peak memory of training in MiB",
    }[name]


def cost_labels(objectives: Objectives) -> dict[str, str]:
    """The costs of a study in words, by name; the one that trials are spread over comes first."""
    return {name: cost_words(name) for name in objectives.costs}


def counts_parameters(objectives: Objectives) -> bool:
    """Whether the first cost counts parameters, of which the effective ones are part."""
    return objectives.primary_cost in ModelSize._fields


def cost_text(name: str, value: float | None) -> str:
    """A cost for people: counts and MiB to the last digit, seconds to three."""
    if value is None:
        return ""
    return f"{value:.3g}" if name == "decoding_seconds" else f"{value:,.0f}"


def state_text(trial: TrialRecord) -> str:
    """How a trial stands, in words."""
    if trial.duplicate_of is not None:
        return "repeated"
    if trial.is_superseded:
        return "withdrawn"
    if trial.is_over_limit:
        return "over a limit"
    return {"PRUNED": "stopped early", "FAIL": "failed"}.get(
        trial.state.name, trial.state.name.lower()
    )


def time_text(trials: Sequence[TrialRecord]) -> str:
    """All training time."""
    return duration_text(sum(trial.seconds for trial in trials))


def duration_text(seconds: float) -> str:
    """A time with a unit that fits."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def mark_text(row: dict[Any, Any]) -> str:
    """What sets a row of the front table apart; empty for a plain point of the front."""
    place = "" if row["on_front"] else "within the noise" if row["within_noise"] else "dominated"
    kinds = ("baseline" if row["baseline"] else "", _warm_text(row), place)
    return ", ".join(kind for kind in kinds if kind)


def _warm_text(row: dict[Any, Any]) -> str:
    """Whether a trial started warm, and from which one if that is not always the baseline."""
    import pandas as pd

    parent = row.get("parent")
    if not row["warm"] or parent is None or pd.isna(parent):
        return "warm" if row["warm"] else ""
    return f"warm from {parent}"


def effective_text(row: dict[Any, Any]) -> str:
    """Effective parameters of a row, empty where there is no count."""
    import pandas as pd

    count = row["effective_cost"]
    return "" if pd.isna(count) else f"{count:,}"


def percent_text(row: dict[Any, Any]) -> str:
    """Change of the cost in percent, empty for the baseline."""
    change = row.get("cost_change")
    if row["baseline"] or change is None or math.isnan(change):
        return ""
    return f"{change:+.1%}"


def loss_change_text(row: dict[Any, Any]) -> str:
    """Change of the loss, empty for the baseline."""
    change = row.get("loss_change")
    if row["baseline"] or change is None or math.isnan(change):
        return ""
    return f"{change:+.4f}"


def retention_text(row: dict[Any, Any]) -> str:
    """How much of the baseline's quality is left, as a share; empty where it has no meaning."""
    share = row.get("retention")
    return "" if row["baseline"] or share is None or math.isnan(share) else f"{share:.1%}"


def price_text(row: dict[Any, Any]) -> str:
    """Change of the loss for each tenth of the cost that is saved; empty where none is."""
    price = row.get("price")
    return "" if row["baseline"] or price is None or math.isnan(price) else f"{price:+.4f}"


def noise_text(noise: Noise, losses: Sequence[float]) -> str:
    """The noise of trials of such losses, from the least to the most."""
    errors = [noise.at(loss).error for loss in losses]
    texts = dict.fromkeys(f"{error:.4f}" for error in (min(errors), max(errors)))
    return " to ".join(texts)
