"""The answer that a report gives first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nas_attn.analysis.trials import Trials
from nas_attn.analysis.verdict import changes_of, smallest_good
from tests.helpers.fakes import OBJECTIVES
from tests.helpers.searched import seeded

Losses = tuple[float, ...]


def searched(trials: Trials, *rows: tuple[int, Losses]) -> Trials:
    """Trials 0, 1, ... of such costs and losses, the baseline first."""
    made = [
        replace(seeded(trials[0], cost, *losses), number=n, is_baseline=n == 0)
        for n, (cost, losses) in enumerate(rows)
    ]
    return Trials(made, OBJECTIVES)


def answer(trials: Trials, confirmed: list[dict[str, object]] | None = None) -> int | None:
    found = smallest_good(trials, *changes_of(trials, confirmed or []))
    return None if found is None else found.number


def row(trial: int, change: float, interval: float | None) -> dict[str, object]:
    return {
        "trial": trial,
        "score": "validation loss",
        "change": change,
        "interval": interval,
        "seeds": 5,
    }


def test_the_smallest_that_is_not_clearly_worse(trials: Trials) -> None:
    found = searched(
        trials,
        (100, (0.95, 1.05)),
        (90, (0.90, 1.00)),
        (80, (0.98, 1.08)),
        (70, (1.45, 1.55)),
    )
    assert answer(found) == 2, "trial 3 is smaller, but clearly worse"
    changes, _ = changes_of(found)
    assert changes[2].change == pytest.approx(0.03)
    # The standard error is 0.05; Student's quantile with four degrees of freedom is 2.776.
    assert changes[2].interval == pytest.approx(2.776 * 0.05 * 2**0.5, rel=1e-3)
    assert changes[3].is_worse and not changes[2].is_worse


def test_without_a_known_noise_a_hundredth_of_the_loss_will_do(trials: Trials) -> None:
    found = searched(trials, (100, (2.0,)), (90, (1.9,)), (80, (2.019,)), (70, (2.021,)))
    assert answer(found) == 2
    assert answer(searched(trials, (100, (2.0,)), (80, (2.021,)))) is None
    assert answer(Trials(found[1:], OBJECTIVES)) is None, "no baseline"


def test_a_confirmation_has_the_last_word(trials: Trials) -> None:
    found = searched(trials, (100, (1.0,)), (90, (1.1,)), (80, (0.9,)), (70, (0.9,)))
    assert answer(found) == 3
    rows = [row(1, 0.02, 0.05), row(2, 0.1, 0.05)]
    assert answer(found, rows) == 1, "trial 2 is worse, 3 is not confirmed"
    assert answer(found, rows[1:]) is None
    scored = Trials(found, replace(OBJECTIVES, maximise=True))
    assert answer(scored, [row(2, 0.1, 0.05), row(1, -0.1, 0.05)]) == 2
