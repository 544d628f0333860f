"""Hypervolume as a search goes on, and the point up to which it counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nas_attn.analysis.hypervolume import progress_of, reference_of
from nas_attn.analysis.trials import Trials
from tests.helpers.fakes import OBJECTIVES
from tests.helpers.searched import seeded


def test_progress_grows_to_all_of_it(trials: Trials) -> None:
    progress = progress_of(trials)
    assert progress is not None
    assert progress.share[-1] == 1.0
    assert list(progress.share) == sorted(progress.share)
    assert progress.trials[-1] == len([t for t in trials if t.is_trained])
    assert progress.share[1] < 0.8, "the second trial does not have nearly all"
    assert progress_of(trials[1:]) is None


def with_losses(trials: Trials, *losses: float) -> Trials:
    """The baseline and others, each smaller than the one before it."""
    rows = enumerate(zip(trials.trained, losses, strict=False))
    return Trials([seeded(trial, 100 - n, loss) for n, (trial, loss) in rows], OBJECTIVES)


def test_the_reference_is_fixed_by_the_baseline(trials: Trials) -> None:
    """What the search finds later does not move it."""
    found = [reference_of(with_losses(trials, 2.0, 2.1, *later)) for later in ((), (1.5, 9.0))]
    assert found[0] == found[1] is not None
    assert found[0].point == (pytest.approx(2.2), 100.0)
    assert "made worse by a tenth, fixed once it is trained (2.2000)" in found[0].words


def test_a_reference_within_which_trials_lie(trials: Trials) -> None:
    """A tenth of the baseline's loss would leave out all of a search whose losses are far above."""
    curve = {1: 8.0, 2: 2.0}
    searched = with_losses(trials, 2.0, 2.5, 5.0)
    gained = reference_of(Trials([replace(searched[0], curve=curve), *searched[1:]], OBJECTIVES))
    assert gained is not None
    assert gained.point[0] == pytest.approx(2.6)
    assert "a tenth of what its training gained" in gained.words
    far = reference_of(with_losses(trials, 2.0, 5.0, 6.0))
    assert far is not None
    assert far.point[0] == pytest.approx(6.0 + 0.1 * 4.0)
    assert "no smaller trial is near" in far.words


def test_a_front_of_one_point_has_a_reference(trials: Trials) -> None:
    alone = progress_of(trials[:1])
    assert alone is None, "the baseline itself is at the reference's cost"
    reference = reference_of(trials[:1])
    assert reference is not None
    assert reference.point[0] == pytest.approx(1.2 * (trials[0].loss or 0.0))
    score = replace(trials[0], loss=20.0, point=(-20.0, float(trials[0].cost or 0)))
    scored = reference_of(Trials([score], replace(OBJECTIVES, maximise=True)))
    assert scored is not None
    assert scored.point[0] == pytest.approx(-16.0)
