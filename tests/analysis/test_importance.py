"""What mattered: the shares of variance that sites explain."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from nas_attn.analysis.importance import importance_of
from nas_attn.analysis.trials import Trials
from tests.helpers.fakes import OBJECTIVES, SHAPES


def with_effect(trials: Trials, site: str) -> Trials:
    """Trials whose losses depend on their cost, and on the scheme at one site."""
    changed = []
    for trial in trials:
        if trial.plan is None or trial.cost is None or not trial.is_trained:
            continue
        bad = dict(trial.plan)[site][0].scheme == "collaborative"
        loss = 3.0 - trial.cost / 1e5 + (0.5 if bad else 0.0)
        changed.append(replace(trial, loss=loss))
    return Trials(changed, OBJECTIVES)


@pytest.mark.parametrize("site", list(SHAPES))
def test_what_mattered_is_found(trials: Trials, site: str) -> None:
    found = importance_of(with_effect(trials, site), SHAPES)
    assert found[0].unit == site
    assert found[0].share > 0.3, "size takes some of it: collaborative attention is smaller"
    assert [effect.scheme for effect in found[0].effects] == ["multi_head", "collaborative"]
    scores = [replace(t, loss=-(t.loss or 0.0)) for t in with_effect(trials, site)]
    assert importance_of(Trials(scores, replace(OBJECTIVES, maximise=True)), SHAPES) == found


def test_chance_is_told_from_effects(trials: Trials) -> None:
    """Where schemes have no effect, the largest share is called clear in about one of twenty."""
    draw = random.Random(5)
    trained = [t for t in trials if t.plan is not None and t.is_trained][:12]
    clear, largest = 0, 0.0
    for _ in range(100):
        noisy = [replace(t, loss=draw.gauss(0, 1)) for t in trained]
        found = importance_of(Trials(noisy, OBJECTIVES), SHAPES)
        clear += found[0].is_clear
        largest = max(largest, found[0].share)
    assert clear <= 12
    assert largest > 0.2, "so much by chance alone"
    assert importance_of(with_effect(trials, "decoder_self"), SHAPES)[0].is_clear


def test_few_trials_say_nothing_of_what_mattered(trials: Trials) -> None:
    assert importance_of(trials[:11], SHAPES) == []
