"""Write a study's report: page, tables, figures and summary, all from the record."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from nas_attn.analysis.learning_curves import curves_of
from nas_attn.analysis.trials import Trials
from nas_attn.curves import write_curves
from nas_attn.engine.ladder import chain_updates
from nas_attn.files import write_json, write_text
from nas_attn.report.context import ReportContext
from nas_attn.report.figures import write_print_figures
from nas_attn.report.latex import latex_table
from nas_attn.report.page import render_page
from nas_attn.report.summary import summary_text
from nas_attn.report.tables import write_rows

SCHEMA = 4
"""Version of front.json; what it holds is documented in docs/report.md."""


def write_report(trials: Trials, context: ReportContext, folder: Path) -> Path:
    """Write the page (index.html), tables (CSV, JSON, LaTeX), figures and summary.md.

    After a confirmation, confirmed.csv too, and agreement.csv where warm trials were compared with
    cold ones.

    Args:
        trials: Trials of the study, in order.
        context: Everything else.
        folder: Folder of the report; made if it is not there.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "trials.csv", trials.to_frame().to_csv(index=False))
    write_text(folder / "front.csv", trials.front_frame().to_csv(index=False))
    write_curves(curves_of(trials), folder / "curves.csv")
    _write_front_json(trials, context.name, folder / "front.json")
    if context.confirmed:
        write_rows(context.confirmed, folder / "confirmed.csv")
    if context.agreement:
        write_rows([asdict(pair) for pair in context.agreement.pairs], folder / "agreement.csv")
    write_print_figures(trials, folder)
    write_text(folder / "summary.md", summary_text(trials, context))
    write_text(folder / "front.tex", latex_table(trials))
    page = folder / "index.html"
    write_text(page, render_page(trials, context))
    return page


def _write_front_json(trials: Trials, study: str, path: Path) -> None:
    noise, objectives, chains = trials.noise, trials.objectives, chain_updates(trials)
    points = [
        {
            "trial": trial.number,
            "baseline": trial.is_baseline,
            "warm": trial.is_warm,
            "plan": trial.plan.to_json() if trial.plan else None,
            "costs": dict(trial.costs),
            "loss": trial.loss,
            "losses": list(trial.losses),
            "noise": None if noise is None or trial.loss is None else noise.at(trial.loss).error,
            "starts": [list(start) for start in trial.starts],
            "commands": [list(command) for command in trial.commands],
            "updates": trial.updates,
            "parent": trial.parent,
            "chain_updates": chains.get(trial.number),
            "folder": trial.folder,
        }
        for trial in trials.front
    ]
    data = {
        "schema": SCHEMA,
        "study": study,
        "loss": objectives.metric,
        "costs": list(objectives.costs),
        "noise": None if noise is None else noise.pooled,
        "front": points,
    }
    write_json(path, data)
