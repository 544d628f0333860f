"""Write a study's report: page, tables, figures and summary, all from the record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nas_attn.analysis.noise import Noise, noise_text
from nas_attn.curves import write_curves
from nas_attn.report.context import ReportContext
from nas_attn.report.figures import write_print_figures
from nas_attn.report.latex import latex_table
from nas_attn.report.page import render_page
from nas_attn.report.tables import (
    cost_text,
    curves_of,
    effective_text,
    front_table,
    loss_change_text,
    mark_text,
    markdown_text,
    percent_text,
    time_text,
    trials_table,
    write_rows,
)
from nas_attn.search.trial_record import TrialRecord, front

SCHEMA = 4
"""Version of front.json; what it holds is documented in docs/report.md."""


def write_report(trials: Sequence[TrialRecord], context: ReportContext, folder: Path) -> Path:
    """Write the page (index.html), tables (CSV, JSON, LaTeX), figures and summary.md.

    After a confirmation, confirmed.csv too, and agreement.csv where warm trials were compared with
    cold ones.

    Args:
        trials: of the study, in order.
        context: everything else.
        folder: where to; made if it is not there.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table, chosen = (
        trials_table(trials),
        front_table(trials, context.objectives),
    )
    noise = Noise.of(trials)
    table.to_csv(folder / "trials.csv", index=False)
    chosen.to_csv(folder / "front.csv", index=False)
    write_curves(curves_of(trials), folder / "curves.csv")
    _write_front_json(trials, context, noise, folder / "front.json")
    if context.confirmed:
        write_rows(context.confirmed, folder / "confirmed.csv")
    if context.agreement:
        write_rows([asdict(pair) for pair in context.agreement.pairs], folder / "agreement.csv")
    write_print_figures(table, folder, quality=context.quality, costs=context.costs)
    summary = summary_text(trials, context)
    (folder / "summary.md").write_text(summary, encoding="utf-8")
    (folder / "front.tex").write_text(latex_table(chosen, context), encoding="utf-8")
    page = folder / "index.html"
    page.write_text(render_page(trials, context, noise, chosen), encoding="utf-8")
    return page


def summary_text(trials: Sequence[TrialRecord], context: ReportContext) -> str:
    """The front as a Markdown table with a few lines around it."""
    chosen = front_table(trials, context.objectives)
    noise = Noise.of(trials)
    trained = sum(trial.is_trained for trial in trials)
    on_front = sum(chosen["on_front"])
    stopped = sum(trial.was_stopped for trial in trials)
    over = sum(trial.is_over_limit and trial.counts for trial in trials)
    seeds = "1 seed" if context.seeds == 1 else f"{context.seeds} seeds"
    lines = [
        f"# {markdown_text(context.name)}",
        "",
        f"{trained} trials of {seeds} trained in {time_text(trials)} of training time; "
        f"{on_front} on the front."
        + (f" {stopped} were stopped early." if stopped else "")
        + (f" {over} were over a limit after pruning." if over else ""),
        "",
    ]
    effective = ["of them effective"] if context.counts_parameters else []
    further = list(context.costs.items())[1:]
    names = [context.axis, "change", *effective, *(words for _, words in further)]
    loss = markdown_text(context.loss)
    lines.append(f"| trial | plan | {' | '.join(names)} | {loss} | change |")
    lines.append("|---:|---|" + "---:|" * (len(names) + 2))
    for row in chosen.to_dict("records"):
        mark = f" ({mark_text(row)})" if mark_text(row) else ""
        plan = markdown_text(str(row["plan"]))
        cells = [
            f"{row['cost']:,}",
            percent_text(row),
            *([effective_text(row)] if effective else []),
        ]
        cells += [cost_text(name, row[name]) for name, _ in further]
        cells += [f"{row['loss']:.4f}", loss_change_text(row)]
        lines.append(f"| {row['trial']}{mark} | {plan} | {' | '.join(cells)} |")
    if noise is not None and on_front > 1:
        losses = [float(loss) for loss in chosen[chosen["on_front"]]["loss"]]
        spread, margin = max(losses) - min(losses), noise.margin(max(losses), min(losses))
        clear = "more" if spread > margin else "no more"
        lines += [
            "",
            f"Noise of one trial (standard error of its mean over {context.seeds} seeds, of trials "
            f"of such a loss): {noise_text(noise, losses)}. Spread of the loss along the front: "
            f"{spread:.4f}, {clear} than the {margin:.4f} that two trials may differ by chance "
            "(95 %).",
        ]
    if context.fine_tuning is not None:
        warm = sum(trial.is_warm for trial in front(list(trials)))
        lines += [
            "",
            f"{warm} of the {on_front} points started warm: from the trained baseline, converted. "
            f"Every trial ends with {context.fine_tuning:,} updates of fine-tuning. All trials "
            f"together had {sum(trial.updates for trial in trials):,} updates.",
        ]
    if context.agreement is not None:
        lines += [
            "",
            f"{context.agreement.verdict}. {len(context.agreement.pairs)} plans were trained both "
            "ways.",
        ]
    for trouble in context.troubles:
        lines += ["", f"**{markdown_text(trouble)}**"]
    return "\n".join(lines) + "\n"


def _write_front_json(
    trials: Sequence[TrialRecord], context: ReportContext, noise: Noise | None, path: Path
) -> None:
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
            "folder": trial.folder,
        }
        for trial in front(list(trials))
    ]
    data = {
        "schema": SCHEMA,
        "study": context.name,
        "loss": context.loss,
        "costs": list(context.objectives.costs),
        "noise": None if noise is None else noise.pooled,
        "front": points,
    }
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
