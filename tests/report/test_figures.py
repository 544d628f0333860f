"""The front as a figure, for notebooks and for print."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest

from nas_attn.analysis.trials import Trials
from nas_attn.errors import UsageError
from nas_attn.report.figures import plot_front
from tests.helpers.fakes import OBJECTIVES, FakeExecutor, make_loop

matplotlib.use("agg")


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    loop = make_loop(tmp_path / "run", trials=14)
    FakeExecutor().run(loop)
    return Trials(loop.store.trials(), OBJECTIVES)


def test_the_front_is_drawn_for_a_notebook(trials: Trials) -> None:
    from matplotlib import pyplot

    axes = plot_front(trials)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("total parameters", "validation loss")
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["dominated", "multi-head baseline", "front"]
    step = axes.get_lines()[0].get_xydata()
    assert [tuple(point) for point in step] == [(t.cost, t.loss) for t in trials.front]
    _, own = pyplot.subplots()
    assert plot_front(trials, x="cache_bytes", ax=own) is own
    assert own.get_xlabel() == "KV-cache bytes per token"
    assert len(own.get_lines()[0].get_xydata()) == len(trials.front)
    assert own.get_lines()[0].get_linestyle() == "None", "over another cost it is no line"
    pyplot.close("all")


def test_a_cost_that_no_trial_has_is_refused(trials: Trials) -> None:
    with pytest.raises(UsageError, match="no trial has the cost 'flops'; known are attention, "):
        plot_front(trials, x="flops")
    with pytest.raises(UsageError, match="known are none"):
        plot_front(Trials([], OBJECTIVES))


def test_a_loss_with_a_dollar_is_no_mathematics(trials: Trials) -> None:
    from matplotlib import pyplot

    odd = Trials(trials, replace(OBJECTIVES, metric="$x", maximise=True))
    assert plot_front(odd).get_ylabel() == r"validation \$x (higher is better)"
    pyplot.close("all")
