"""Write a study's report: page, tables, figures and summary, all from the record."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from nas_attn.attention.counting import ModelSize
from nas_attn.report.agreement import Agreement
from nas_attn.report.figures import interactive_figure, write_print_figures
from nas_attn.report.sensitivity import Findings, curve, heat_map, outcome_text
from nas_attn.report.tables import (
    DIFFERENCE,
    cost_text,
    curves_of,
    front_table,
    noise_of,
    reproduction_texts,
    state_text,
    trials_table,
    write_rows,
)
from nas_attn.search.objectives import Objectives
from nas_attn.search.record import TrialRecord, front
from nas_attn.training.replay import write_curves

MAX_ROWS = 2000
"""Trials listed on the page; tables hold all."""


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """What a report says besides its trials.

    Args:
        name: of the study.
        description: in the user's words.
        objectives: what was weighed.
        seeds: trainings of a trial.
        settings: kept with the trials.
        versions: of the libraries, as kept with the study.
        machine: where the search ran.
        evaluate: for each trial number on the front, the command that evaluates its checkpoint.
        confirmed: from `confirmation_rows`; empty if nothing was confirmed.
        fine_tuning: updates that end every trial where there are warm starts; None where not.
        agreement: of warm and cold trials, if it was asked for.
        findings: what single conversions of the baseline predict, if they were measured.
    """

    name: str
    description: str
    objectives: Objectives
    seeds: int
    settings: dict[str, Any]
    versions: dict[str, str]
    machine: str
    evaluate: dict[int, str]
    confirmed: Sequence[Mapping[str, Any]] = ()
    fine_tuning: int | None = None
    agreement: Agreement | None = None
    findings: Findings | None = None

    @property
    def loss(self) -> str:
        return self.objectives.loss

    @property
    def quality(self) -> str:
        """The measure of quality in words."""
        return self.objectives.quality

    @property
    def costs(self) -> dict[str, str]:
        """The costs in words."""
        return {name: cost_words(name) for name in self.objectives.costs}

    @property
    def axis(self) -> str:
        """The first cost in words."""
        return self.costs[self.objectives.axis]


def cost_words(name: str) -> str:
    """A cost in words."""
    if name in ModelSize._fields:
        return f"{name.replace('_', '-')} parameters"
    return {
        "cache_bytes": "cache bytes a token",
        "flops": "operations a sentence",
        "decoding_seconds": "decoding seconds a sentence",
    }[name]


def write_report(trials: Sequence[TrialRecord], context: ReportContext, folder: Path) -> Path:
    """Write index.html, front.csv, trials.csv, curves.csv, front.json, figures and summary.md.

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
        trials_table(trials, context.objectives),
        front_table(trials, context.objectives),
    )
    noise = noise_of(trials)
    table.to_csv(folder / "trials.csv", index=False)
    chosen.to_csv(folder / "front.csv", index=False)
    write_curves(curves_of(trials), folder / "curves.csv")
    _write_front_json(trials, context, noise, folder / "front.json")
    if context.confirmed:
        write_rows(context.confirmed, folder / "confirmed.csv")
    if context.agreement:
        write_rows([asdict(pair) for pair in context.agreement.pairs], folder / "agreement.csv")
    write_print_figures(table, folder, quality=context.quality, costs=context.costs, noise=noise)
    summary = summary_text(trials, context)
    (folder / "summary.md").write_text(summary, encoding="utf-8")
    page = folder / "index.html"
    figure = interactive_figure(table, quality=context.quality, costs=context.costs, noise=noise)
    page.write_text(_render(trials, context, noise, figure, chosen), encoding="utf-8")
    return page


def summary_text(trials: Sequence[TrialRecord], context: ReportContext) -> str:
    """The front as a Markdown table with a few lines around it."""
    chosen = front_table(trials, context.objectives)
    noise = noise_of(trials)
    trained = sum(trial.is_trained for trial in trials)
    on_front = sum(chosen["on_front"])
    stopped = sum(trial.state.name == "PRUNED" and trial.counts for trial in trials)
    seeds = "1 seed" if context.seeds == 1 else f"{context.seeds} seeds"
    lines = [
        f"# {context.name}",
        "",
        f"{trained} trials of {seeds} trained in {_time(trials)} of training time; "
        f"{on_front} on the front." + (f" {stopped} were stopped early." if stopped else ""),
        "",
    ]
    effective = ["of them effective"] if _counts_parameters(context) else []
    further = list(context.costs.items())[1:]
    names = [context.axis, "change", *effective, *(words for _, words in further)]
    lines.append(f"| trial | plan | {' | '.join(names)} | {context.loss} | change |")
    lines.append("|---:|---|" + "---:|" * (len(names) + 2))
    for row in chosen.to_dict("records"):
        mark = f" ({_mark(row)})" if _mark(row) else ""
        plan = str(row["plan"]).replace("|", "\\|")
        cells = [f"{row['cost']:,}", _percent(row), *([_effective(row)] if effective else [])]
        cells += [cost_text(name, row[name]) for name, _ in further]
        cells += [f"{row['loss']:.4f}", _loss_change(row)]
        lines.append(f"| {row['trial']}{mark} | {plan} | {' | '.join(cells)} |")
    if noise is not None and on_front > 1:
        losses = chosen[chosen["on_front"]]["loss"]
        spread = float(losses.max() - losses.min())
        lines += [
            "",
            f"Noise of one trial (standard error of its mean over {context.seeds} seeds, pooled): "
            f"{noise:.4f}. Spread of the loss along the front: {spread:.4f}, "
            f"{spread / noise:.1f} times the noise.",
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
    return "\n".join(lines) + "\n"


def _write_front_json(
    trials: Sequence[TrialRecord], context: ReportContext, noise: float | None, path: Path
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
            "starts": [list(start) for start in trial.starts],
            "commands": [list(command) for command in trial.commands],
            "updates": trial.updates,
            "folder": trial.folder,
        }
        for trial in front(list(trials))
    ]
    data = {
        "schema": 3,
        "study": context.name,
        "loss": context.loss,
        "costs": list(context.objectives.costs),
        "noise": noise,
        "front": points,
    }
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _render(
    trials: Sequence[TrialRecord],
    context: ReportContext,
    noise: float | None,
    figure: str,
    chosen: pd.DataFrame,
) -> str:
    template = resources.files("nas_attn.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    by_number = {trial.number: trial for trial in trials}
    on_front = {trial.number for trial in front(list(trials))}
    further = list(context.costs)[1:]
    return environment.from_string(template).render(
        name=context.name,
        description=context.description,
        loss=context.loss,
        axis=context.axis,
        further=[context.costs[name] for name in further],
        counts_parameters=_counts_parameters(context),
        seeds=context.seeds,
        settings=json.dumps(context.settings, indent=2),
        versions=context.versions,
        machine=context.machine,
        noise=noise,
        margin=None if noise is None else DIFFERENCE * noise,
        figure=figure,
        time=_time(trials),
        baseline=next((t for t in trials if t.is_baseline and t.is_trained), None),
        counts={
            "front": len(on_front),
            "trained": sum(trial.is_trained for trial in trials),
            "stopped": sum(t.state.name == "PRUNED" and t.counts for t in trials),
            "failed": sum(t.state.name == "FAIL" and t.counts for t in trials),
            "refused": sum(trial.is_refused for trial in trials),
        },
        front=[
            {
                "trial": row["trial"],
                "baseline": row["baseline"],
                "mark": _mark(row),
                "plan": row["plan"],
                "commands": reproduction_texts(by_number[row["trial"]]),
                "evaluate": context.evaluate.get(row["trial"], ""),
                "cost": row["cost"],
                "cost_change": _percent(row),
                "effective": _effective(row),
                "further": [cost_text(name, row[name]) for name in further],
                "loss": f"{row['loss']:.4f}",
                "loss_change": _loss_change(row),
            }
            for row in chosen.to_dict("records")
        ],
        trials=[_row(trial, trial.number in on_front, further) for trial in trials[:MAX_ROWS]],
        left_out=max(0, len(trials) - MAX_ROWS),
        confirmed=context.confirmed,
        fine_tuning=context.fine_tuning,
        updates=sum(trial.updates for trial in trials),
        agreement=context.agreement,
        findings=context.findings,
        outcomes="" if context.findings is None else outcome_text(context.findings),
        pictures=_pictures(context),
    )


def _pictures(context: ReportContext) -> list[tuple[str, str]]:
    """Figures of the predictions for the page, each with what it shows."""
    if context.findings is None:
        return []
    pictures = []
    for words, figure in (
        ("The predicted front with what was measured", curve(context.findings)),
        ("Change of the loss for each unit and choice", heat_map(context.findings)),
    ):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg")
        encoded = base64.b64encode(buffer.getvalue()).decode()
        pictures.append((words, f"data:image/svg+xml;base64,{encoded}"))
    return pictures


def _row(trial: TrialRecord, on_front: bool, further: Sequence[str]) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "state": state_text(trial),
        "baseline": trial.is_baseline,
        "on_front": on_front,
        "warm": trial.is_warm,
        "duplicate_of": trial.duplicate_of,
        "plan": trial.text,
        "reason": trial.reason,
        "commands": reproduction_texts(trial),
        "cost": "" if trial.cost is None else f"{trial.cost:,}",
        "effective": "" if trial.effective is None else f"{trial.effective:,}",
        "further": [cost_text(name, trial.costs.get(name)) for name in further],
        "loss": "" if trial.loss is None else f"{trial.loss:.4f}",
        "spread": ", ".join(f"{loss:.4f}" for loss in trial.losses),
        "seconds": f"{trial.seconds:.0f}" if trial.seconds else "",
    }


def _time(trials: Sequence[TrialRecord]) -> str:
    """All training time, with a unit that fits."""
    seconds = sum(trial.seconds for trial in trials)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _counts_parameters(context: ReportContext) -> bool:
    """Whether the axis counts parameters of which others than the effective ones are part."""
    return context.objectives.axis in ModelSize._fields


def _mark(row: dict[Any, Any]) -> str:
    """What sets a row of the front table apart; empty for a plain point of the front."""
    place = "" if row["on_front"] else "within the noise" if row["within_noise"] else "dominated"
    kinds = ("baseline" if row["baseline"] else "", "warm" if row["warm"] else "", place)
    return ", ".join(kind for kind in kinds if kind)


def _effective(row: dict[Any, Any]) -> str:
    count = row["effective_cost"]
    return "" if pd.isna(count) else f"{count:,}"


def _percent(row: dict[Any, Any]) -> str:
    change = row.get("cost_change")
    if row["baseline"] or change is None or math.isnan(change):
        return ""
    return f"{change:+.1%}"


def _loss_change(row: dict[Any, Any]) -> str:
    change = row.get("loss_change")
    if row["baseline"] or change is None or math.isnan(change):
        return ""
    return f"{change:+.4f}"
