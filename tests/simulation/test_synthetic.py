"""Made-up learning curves, and the faults that are drawn."""

from __future__ import annotations

import math
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from nas_attn.curves import Curve
from nas_attn.plan import SITES, AttentionChoice, AttentionPlan
from nas_attn.simulation.synthetic import (
    FaultName,
    ReplayConfig,
    curve_of,
    drawn_fault,
    synthetic_curve,
    validations_before_fault,
)
from tests.helpers.curves import MIXED, MULTI_HEAD, PARAMETERS


def losses(curve: Curve) -> list[float]:
    return [point.loss for point in curve.points]


class TestConfig:
    def test_defaults_are_a_made_up_curve_without_faults(self) -> None:
        config = ReplayConfig()
        assert config.curves is None
        assert len(curve_of(config, MULTI_HEAD, PARAMETERS, 1).points) == 9
        assert config.faults == {}

    def test_probabilities_sum_to_one_at_most(self) -> None:
        assert ReplayConfig(faults=dict.fromkeys(get_args(FaultName), 1 / 6)).faults
        with pytest.raises(ValidationError, match=re.escape("sum to at most 1, not 1.1")):
            ReplayConfig(faults={"killed": 0.5, "hung": 0.6})

    @pytest.mark.parametrize(
        "values",
        [
            {"faults": {"lightning": 0.5}},
            {"faults": {"killed": 1.5}},
            {"validations": 0},
            {"noise": -0.1},
            {"seconds": -1.0},
            {"seconds": math.inf},
            {"speed": 1},
        ],
        ids=str,
    )
    def test_refuses(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            ReplayConfig.model_validate(values)


class TestSyntheticCurve:
    def test_falls_over_the_validations_asked_for(self) -> None:
        config = ReplayConfig(validations=7, updates_per_validation=50, seconds=3.5)
        points = synthetic_curve(config, MIXED, PARAMETERS, 1).points
        assert [point.num_updates for point in points] == [50, 100, 150, 200, 250, 300, 350]
        assert [point.seconds for point in points] == pytest.approx([0.5 * n for n in range(1, 8)])
        assert [point.loss for point in points] == sorted(
            (point.loss for point in points), reverse=True
        )

    def test_is_the_same_in_every_process(self) -> None:
        config = ReplayConfig(faults={"killed": 0.5})
        code = (
            "import sys; from nas_attn.simulation.synthetic import *\n"
            "config = ReplayConfig(faults={'killed': 0.5})\n"
            "for plan in sys.argv[1:]:\n"
            "    print([tuple(p) for p in synthetic_curve(config, plan, 250_000, 3).points])\n"
            "    print([drawn_fault(config, plan, 3, attempt) for attempt in range(1, 20)])\n"
        )
        here = ""
        for plan in (MULTI_HEAD, MIXED):
            here += f"{[tuple(p) for p in synthetic_curve(config, plan, 250_000, 3).points]}\n"
            here += f"{[drawn_fault(config, plan, 3, attempt) for attempt in range(1, 20)]}\n"
        for hash_seed in ("1", "2"):
            there = subprocess.run(
                [sys.executable, "-c", code, MULTI_HEAD, MIXED],
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
                capture_output=True,
                text=True,
                check=True,
            )
            assert there.stdout == here

    @pytest.mark.parametrize("small", [50_000, 200_000, 1_000_000, 4_000_000])
    @pytest.mark.parametrize("ratio", [1.3, 2, 4])
    def test_curves_of_different_sizes_cross(self, small: int, ratio: float) -> None:
        config = ReplayConfig(noise=0.0)
        smaller = losses(synthetic_curve(config, MULTI_HEAD, small, 1))
        larger = losses(synthetic_curve(config, MULTI_HEAD, int(small * ratio), 1))
        assert smaller[0] < larger[0]
        assert smaller[-1] > larger[-1]

    def test_noise_is_of_the_final_loss_over_seeds(self) -> None:
        config = ReplayConfig(noise=0.05)
        finals = [
            losses(synthetic_curve(config, MIXED, PARAMETERS, seed))[-1] for seed in range(2000)
        ]
        quiet = synthetic_curve(ReplayConfig(noise=0.0), MIXED, PARAMETERS, 1)
        assert statistics.stdev(finals) == pytest.approx(0.05, rel=0.1)
        assert statistics.fmean(finals) == pytest.approx(losses(quiet)[-1], abs=0.005)

    def test_choices_add_up_over_the_sites_but_for_a_little(self) -> None:
        config = ReplayConfig(noise=0.0)

        def final(*schemes: str) -> float:
            choices = {
                site: AttentionChoice.of(scheme)
                for site, scheme in zip(SITES, schemes, strict=True)
            }
            plan = AttentionPlan.of(choices).dumps()
            return losses(synthetic_curve(config, plan, PARAMETERS, 1))[-1]

        first, second = "multi_head", "grouped_query"
        neither, both = final(first, first, first), final(second, second, first)
        one, other = final(second, first, first), final(first, second, first)
        assert len({neither, both, one, other}) == 4
        assert both - neither == pytest.approx(one - neither + other - neither, abs=0.04)

    def test_is_made_fast_enough_for_a_long_search(self) -> None:
        choices = [AttentionChoice.of("collaborative", shared_dim=d) for d in (8, 16, 32, 64)]
        draw = random.Random(1)
        plans = [
            AttentionPlan.of({site: draw.choices(choices, k=6) for site in SITES}).dumps()
            for _ in range(500)
        ]
        config = ReplayConfig()
        began = time.process_time()
        for plan in plans:
            synthetic_curve(config, plan, PARAMETERS, 1)
        # About 40 microseconds each on an idle machine.
        assert (time.process_time() - began) / len(plans) < 500e-6


class TestFaultDraw:
    def test_frequencies_are_the_probabilities(self) -> None:
        config = ReplayConfig(faults={"hung": 0.1, "killed": 0.3})
        drawn = Counter(drawn_fault(config, MIXED, seed, 1) for seed in range(5000))
        assert drawn["hung"] / 5000 == pytest.approx(0.1, abs=0.02)
        assert drawn["killed"] / 5000 == pytest.approx(0.3, abs=0.03)
        assert set(drawn) == {"hung", "killed", None}

    def test_another_attempt_draws_anew(self) -> None:
        config = ReplayConfig(faults={"killed": 0.5})
        attempts = [drawn_fault(config, MIXED, 1, attempt) for attempt in range(1, 50)]
        assert set(attempts) == {"killed", None}

    def test_all_or_nothing(self) -> None:
        certain = ReplayConfig(faults={"disk_full": 1.0})
        assert {drawn_fault(certain, MIXED, seed, 1) for seed in range(500)} == {"disk_full"}
        assert {drawn_fault(ReplayConfig(), MIXED, seed, 1) for seed in range(500)} == {None}

    def test_strikes_half_way_through_what_is_left(self) -> None:
        assert validations_before_fault(0, 9) == 4
        assert validations_before_fault(4, 9) == 6
        assert validations_before_fault(8, 9) == 8
        assert validations_before_fault(9, 9) == 9
