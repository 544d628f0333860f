"""The noise of losses over seeds, and what it leaves undecided."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nas_attn.analysis.noise import LEAST_DEGREES, Noise, undecided
from nas_attn.analysis.trials import Trials
from tests.helpers.fakes import OBJECTIVES
from tests.helpers.searched import seeded


def test_noise_is_of_trials_of_such_a_loss(trials: Trials) -> None:
    assert Noise.of(trials) is None
    calm = [seeded(trials[n], 100 - n, 3 + n / 10 - 0.01, 3 + n / 10 + 0.01) for n in range(12)]
    wild = [seeded(trials[n], 50 - n, 6 + n / 10 - 0.5, 6 + n / 10 + 0.5) for n in range(12)]
    noise = Noise.of([*wild, *calm, replace(trials[13], losses=())])
    assert noise is not None
    for loss, deviation in ((2.0, 0.01), (3.5, 0.01), (6.5, 0.5), (9.0, 0.5)):
        level = noise.at(loss)
        assert level.error == pytest.approx(deviation)  # a mean of two has sqrt(2 / 2) of it
        assert level.degrees == LEAST_DEGREES
    assert noise.pooled == pytest.approx(((0.01**2 + 0.5**2) / 2) ** 0.5)
    # Student's 97.5 % quantile with 10 degrees of freedom is 2.228.
    assert noise.margin(3.5, 3.4) == pytest.approx(2.228 * 0.01 * 2**0.5, rel=1e-3)
    assert noise.margin(6.5, 6.4) == pytest.approx(50 * noise.margin(3.5, 3.4))
    few = Noise.of(calm[:3])
    assert few is not None
    assert few.at(3.0).degrees == 3, "all that there are"


def test_poor_trials_do_not_blur_good_ones(trials: Trials) -> None:
    """What the noise of poor trials would leave open, that of good ones decides."""
    good = [seeded(trials[n], 100 + n, 3 + n / 10 - 0.01, 3 + n / 10 + 0.01) for n in range(11)]
    poor = [seeded(trials[n], 50 - n, 6 + n / 10 - 0.5, 6 + n / 10 + 0.5) for n in range(11)]
    found = [replace(trial, number=place) for place, trial in enumerate([*good, *poor])]
    noise = Noise.of(found)
    assert noise is not None
    assert 1.96 * 2**0.5 * noise.pooled > 0.1, "pooled, the second best would be left open"
    assert not undecided(found, noise) & set(range(11))


def test_losses_ten_times_as_large_say_nothing(trials: Trials) -> None:
    """Even where the trials of such a loss have few degrees of freedom."""
    few = [seeded(trials[n], 100 - n, 0.20 + n / 100, 0.22 + n / 100) for n in range(3)]
    noise = Noise.of([*few, seeded(trials[3], 9, 1.9, 2.5), seeded(trials[4], 9, 3.9, 4.5)])
    assert noise is not None
    assert (noise.at(0.2).error, noise.at(0.2).degrees) == (pytest.approx(0.01), 3)
    assert (noise.at(2.2).error, noise.at(2.2).degrees) == (pytest.approx(0.3), 2)
    alone = noise.at(90.0)
    assert (alone.error, alone.degrees) == (pytest.approx(0.3), 1), "the nearest, whatever it is"


def test_a_point_dominates_only_beyond_the_noise(trials: Trials) -> None:
    """The standard error of a mean of two is 0.1; with three degrees of freedom, 3.182 is Student's
    97.5 % quantile, so that a difference must exceed 0.45."""
    best = seeded(trials[0], 100, 0.9, 1.1)
    near = seeded(trials[1], 200, 1.0, 1.2)
    far = seeded(trials[2], 200, 1.4, 1.6)
    found = [best, near, far]
    noise = Noise.of(found)
    assert noise is not None
    assert noise.pooled == pytest.approx(0.1)
    assert noise.margin(1.0, 1.5) == pytest.approx(3.182 * 0.1 * 2**0.5, rel=1e-3)
    assert undecided(found, noise) == {near.number}
    assert undecided(found, None) == set()
    table = Trials(found, OBJECTIVES).front_frame()
    assert list(table["within_noise"]) == [False, True]
    assert table["loss_error"].iloc[0] == pytest.approx(0.1)
