"""Hypervolume as a search goes on, and the point up to which it counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nas_attn.analysis.hypervolume import progress_of, reference_of
from nas_attn.analysis.trials import Trials
from tests.helpers.fakes import OBJECTIVES


def test_progress_grows_to_all_of_it(trials: Trials) -> None:
    progress = progress_of(trials)
    assert progress is not None
    assert progress.share[-1] == 1.0
    assert list(progress.share) == sorted(progress.share)
    assert progress.trials[-1] == len([t for t in trials if t.is_trained])
    best = trials.front
    losses = [trial.loss or 0.0 for trial in best]
    weak = max(losses) + 0.1 * (max(losses) - min(losses))
    assert progress.reference.point == (pytest.approx(weak), trials[0].cost)
    assert progress.share[1] < 0.8, "the second trial does not have nearly all"
    assert progress_of(trials[1:]) is None


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
