"""The front as a LaTeX table."""

from __future__ import annotations

import pandas as pd

from nas_attn.analysis.trials import Trials
from nas_attn.report.formatting import cost_words, loss_change_text, mark_text, percent_text
from nas_attn.report.rendering import render_latex


def latex_table(trials: Trials) -> str:
    """A tabular of the front, what is within its noise and the baseline, each marked as such; it
    needs the package booktabs. After a loss stands the standard error of trials of such a loss,
    where it is known.

    Args:
        trials: Trials of the study.
    """
    rows = []
    for row in trials.front_frame().to_dict("records"):
        plan = "multi-head" if row["baseline"] else str(row["plan"])
        rows.append(
            {
                "trial": row["trial"],
                "plan": plan + (f" ({mark_text(row)})" if mark_text(row) else ""),
                "cost": f"{row['cost']:,}",
                "cost_change": percent_text(row),
                "loss": f"{row['loss']:.4f}",
                "noise": "" if pd.isna(row["noise"]) else f"{row['noise']:.4f}",
                "loss_change": loss_change_text(row),
            }
        )
    objectives = trials.objectives
    axis = cost_words(objectives.primary_cost)
    return render_latex("front.tex", rows=rows, axis=axis, loss=objectives.metric)
