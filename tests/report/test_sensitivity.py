"""What is said of predictions once trials were trained."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from nas_attn.analysis.sensitivity import orders
from nas_attn.engine.sensitivity import Measured, PredictionCheck
from nas_attn.plan import AttentionPlan
from nas_attn.report.sensitivity import curve, outcome_text, write_findings
from tests.helpers.predicted import findings


def test_what_fine_tuning_leaves(tmp_path: Path) -> None:
    found = findings(outcomes=7)
    assert found.corrected(0.1) == pytest.approx(0.15)
    assert found.remaining == pytest.approx(0.2)
    assert "fine-tuning left 0.20 of what was predicted" in outcome_text(found)
    assert found.gist == (
        "Predictions ordered plans nearly as measurements did; their typical error is 0% of the "
        "change."
    )
    write_findings(found, tmp_path)
    row = pd.read_csv(tmp_path / "predicted.csv").iloc[0]
    assert row["fine_tuned"] == pytest.approx(0.03)


def test_few_trials_or_cold_ones_say_nothing_of_fine_tuning(tmp_path: Path) -> None:
    assert findings(outcomes=5).remaining is None
    cold = findings(outcomes=7, is_warm=False)
    assert cold.remaining is None
    assert "fine-tuning" not in outcome_text(cold)
    write_findings(cold, tmp_path)
    assert pd.read_csv(tmp_path / "predicted.csv")["fine_tuned"].isna().all()


def test_perplexities_are_compared_by_their_order_only(tmp_path: Path) -> None:
    found = findings(outcomes=7, is_same_measure=False)
    assert found.remaining is None
    assert "tau 1.00 over all" in outcome_text(found)
    assert "fine-tuning" not in outcome_text(found)
    write_findings(found, tmp_path)


def test_sums_of_several_measures_are_compared() -> None:
    parts = [
        AttentionPlan.parse(f'{{"encoder_self": {{"scheme": "reduced_key", "key_dim": {n}}}}}')
        for n in range(1, 9)
    ]
    checks = [
        PredictionCheck(
            plan=plan, cost=100, kind="random", predicted=0.0, measured=0.1 * n, error=0.0
        )
        for n, plan in enumerate(parts)
    ]
    rising = {plan: Measured(float(n), 0.0) for n, plan in enumerate(parts)}
    falling = {plan: Measured(-float(n), 0.0) for n, plan in enumerate(parts)}
    lacking = dict(list(rising.items())[1:])
    measures = {"loss": rising, "divergence": falling, "gradients": lacking}
    found = orders(checks, lambda plan: [plan, plan], measures)
    assert found == pytest.approx({"loss": 1.0, "divergence": -1.0})
    assert orders(checks[:5], lambda plan: [plan], measures) == {}


def test_the_picture_of_predictions_shows_all_of_them() -> None:
    """With room above the worst: a logarithmic axis needs a factor, not a margin."""
    found = findings(outcomes=7)
    axes = curve(found).axes[0]
    low, high = axes.get_ylim()
    worst = max(check.measured for check in found.checks)
    assert high > 1.3 * worst
    assert -0.01 < low < 0, "what is better than the baseline does not take half of it"
    assert axes.get_xlabel() == "attention parameters"
    assert axes.get_legend() is None, "the legend lies outside"
