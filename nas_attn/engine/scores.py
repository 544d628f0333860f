"""Scores by gradients, as the measurements' record keeps them, and what they let expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from nas_attn.engine.sensitivity import Measured, straight_line
from nas_attn.engine.store import TrialStore
from nas_attn.plan import AttentionPlan
from nas_attn.rank_agreement import LEAST_COUNT

SCORES: Final = "gradient_scores"
"""Under this name the record keeps scores, by the digests of plans."""
TRANSLATIONS: Final = "bleu"
"""And under this one BLEU of converted models."""


def scores_of(store: TrialStore) -> dict[str, Measured]:
    """The scores that a record keeps, by the digest of the plan; none if there are none."""
    known = store.metadata().get(SCORES, {})
    return {digest: Measured(change, error) for digest, (change, error) in known.items()}


def keep_scores(store: TrialStore, scores: Mapping[AttentionPlan, Measured]) -> None:
    """Add scores to a record."""
    together = scores_of(store) | {plan.digest: score for plan, score in scores.items()}
    # Six digits, for some databases have no room for large records.
    shortened = {
        digest: [float(f"{score.change:.6g}"), float(f"{score.error:.3g}")]
        for digest, score in together.items()
    }
    store.set_metadata(SCORES, shortened)


def translation_scores(store: TrialStore) -> dict[str, float]:
    """BLEU of converted models as a record keeps it, by the digest of the plan."""
    return dict(store.metadata().get(TRANSLATIONS, {}))


def keep_translation_score(store: TrialStore, plan: AttentionPlan, bleu: float) -> None:
    """Add a plan's BLEU to a record."""
    store.set_metadata(TRANSLATIONS, {**translation_scores(store), plan.digest: bleu})


def expected_changes(
    scores: Mapping[AttentionPlan, Measured], measured: Mapping[AttentionPlan, Measured]
) -> dict[AttentionPlan, Measured]:
    """What was measured, and what scores let expect of plans that were not.

    Scores are right to second order only, so they fall short of strong changes. What was measured
    of them says by how much: measured = s score + c score^2, once there is enough of it.

    Args:
        scores: Changes of the loss by gradients.
        measured: Changes of the loss that were measured, of some of these plans and of others.
    """
    known = [
        (score.change, measured[plan].change)
        for plan, score in scores.items()
        if plan in measured and score.change > 2 * max(score.error, measured[plan].error)
    ]
    scale, bend, spread = 1.0, 0.0, 0.0
    if len(known) >= LEAST_COUNT:
        points, changes = np.array(known).T
        scale, bend = straight_line(points, changes / points)
        spread = float(np.std(changes / points / (scale + bend * points)))
    found = dict(measured)
    for plan, score in scores.items():
        if plan not in measured:
            change = scale * score.change + bend * max(0.0, score.change) ** 2
            error = float(np.hypot(scale * score.error, spread * change))
            found[plan] = Measured(change, error)
    return found
