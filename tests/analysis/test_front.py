"""Tables of the front."""

from __future__ import annotations

from nas_attn.analysis.trials import Trials
from tests.helpers.fakes import OBJECTIVES


def test_the_baseline_has_its_row(trials: Trials) -> None:
    table = trials.front_frame()
    (row,) = table[table["baseline"]].to_dict("records")
    assert row["trial"] == 0
    assert row["loss_change"] == 0
    assert row["cost_change"] == 0
    assert list(table["cost"]) == sorted(table["cost"])


def test_an_empty_study_has_an_empty_table() -> None:
    empty = Trials([], OBJECTIVES)
    assert empty.to_frame().empty
    assert empty.front_frame().empty
