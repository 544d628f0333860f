"""Whether losses after a warm start rank plans as trainings from scratch do."""

from __future__ import annotations

import pytest

from nas_attn.analysis.agreement import agreement_of, spread_evenly
from nas_attn.analysis.trials import Trials
from tests.helpers.searched import MISLEADING, compared


def test_rank_agreement(trials: Trials) -> None:
    order = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    agreement = agreement_of(*compared(trials, order, [10 * loss for loss in order]))
    assert agreement is not None
    assert (agreement.ranks.overall, agreement.ranks.terciles, agreement.ranks.is_guide) == (
        1.0,
        (1.0, 1.0, 1.0),
        True,
    )
    assert agreement.updates == 270
    # The smallest third the other way round: 3 of 36 pairs, and nothing left within it.
    agreement = agreement_of(*compared(trials, order, [7.0, 8.0, 9.0, *order[3:]]))
    assert agreement is not None
    assert agreement.ranks.overall == pytest.approx(1 - 2 * 3 / 36)
    assert agreement.ranks.terciles == (-1.0, 1.0, 1.0)
    assert agreement.ranks.is_guide
    # Right about sizes and wrong within all: the search would be no better than a guess.
    agreement = agreement_of(*compared(trials, *MISLEADING))
    assert agreement is not None
    assert not agreement.ranks.is_guide
    assert "misleads here: tau 0.50 over all, -1.00 within terciles" in agreement.verdict
    # What is not known is not trusted.
    flat = agreement_of(*compared(trials, order, [1.0] * 9))
    assert flat is not None
    assert not flat.ranks.is_guide
    assert agreement_of(*compared(trials, order[:5], order[:5])) is None


def test_compared_trials_are_spread_by_rank(trials: Trials) -> None:
    warm, _ = compared(trials, [1.0] * 9, [1.0] * 9)
    assert [warm.index(trial) for trial in spread_evenly(warm, 5)] == [0, 2, 4, 6, 8]
    assert len(spread_evenly(warm, 20)) == 9
    assert spread_evenly(trials, 5) == []
