"""The front as a LaTeX table."""

from __future__ import annotations

import re

import pandas as pd

from nas_attn.report.context import ReportContext
from nas_attn.report.tables import loss_change_text, mark_text, percent_text

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def latex_text(text: str) -> str:
    """A text as LaTeX sets it, whatever is in it."""
    return re.sub(r"[\\~^|<>&%$#_{}]", lambda found: SPECIAL[found.group()], text)


def latex_table(chosen: pd.DataFrame, context: ReportContext) -> str:
    """A tabular of the front, what is within its noise and the baseline, each marked as such; it
    needs the package booktabs.

    Args:
        chosen: from `front_table`.
        context: of the report.
    """
    lines = [
        "% \\usepackage{booktabs}",
        r"\begin{tabular}{rp{0.5\linewidth}rrrr}",
        r"\toprule",
        f"Trial & Plan & {latex_text(context.axis)} & Change & {latex_text(context.loss)} "
        r"& Change \\",
        r"\midrule",
    ]
    for row in chosen.to_dict("records"):
        plan = "multi-head" if row["baseline"] else str(row["plan"])
        if mark_text(row):
            plan += f" ({mark_text(row)})"
        cells = [
            str(row["trial"]),
            latex_text(plan),
            f"{row['cost']:,}",
            latex_text(percent_text(row)),
            f"{row['loss']:.4f}",
            f"${loss_change_text(row)}$" if loss_change_text(row) else "",
        ]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
