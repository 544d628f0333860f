"""Confirmation with fresh seeds, taken as pairs with the baseline's."""

from __future__ import annotations

import statistics

import pytest

from nas_attn.analysis.confirmation import confirmation_rows
from nas_attn.analysis.trials import Trials
from tests.helpers.searched import confirmed_trials


def test_confirmation_takes_seeds_as_pairs(trials: Trials) -> None:
    confirmed = confirmed_trials(trials)
    other = confirmed[1]
    assert other.plan is not None
    rows = confirmation_rows(confirmed, {other.plan: 7})
    assert [row["cost"] for row in rows] == [100, 100, 150, 150, 200, 200]
    named = {(row["cost"], row["score"]): row for row in rows}
    loss = named[100, "validation loss"]
    assert loss["trial"] == 7  # in the search; in the confirmation it is trial 1
    assert loss["change"] == pytest.approx(0.1)
    assert loss["interval"] == pytest.approx(0.0, abs=1e-12)
    assert loss["verdict"] == "worse"
    bleu = named[100, "test bleu"]
    assert bleu["mean"] == pytest.approx(64 / 3)
    # Changes -1, 2 and 0; Student's 97.5 % quantile with 2 degrees of freedom is 4.303.
    assert bleu["interval"] == pytest.approx(
        4.303 * statistics.stdev([-1, 2, 0]) / 3**0.5, rel=1e-3
    )
    assert bleu["verdict"] == "noise"
    assert named[150, "test bleu"]["verdict"] == "better"  # BLEU is better when higher
    assert named[200, "test bleu"]["change"] is None
