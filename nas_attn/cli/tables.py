"""What commands show when they are done, as rich tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from nas_attn.analysis.comparison import Comparison
from nas_attn.analysis.sensitivity import TOLERANCES, SensitivityFindings, prediction_row
from nas_attn.cli.parts import PlanTable, plain
from nas_attn.report.comparison import ratio_text

if TYPE_CHECKING:
    from nas_attn.fairseq_tools.convert import Converted
    from nas_attn.fairseq_tools.prune import Pruned
    from nas_attn.fairseq_tools.self_test import StepOutcome
    from nas_attn.workflows.spaces import MeasuredSpace


def confirmation_table(rows: Sequence[Mapping[str, Any]], axis: str) -> PlanTable:
    """What trainings with fresh seeds gave: each plan with a line a score.

    Args:
        rows: Rows of `confirmation_rows`.
        axis: Name of the cost.
    """
    lines = []
    for plan, scores in groupby(rows, key=itemgetter("plan")):
        of_plan = list(scores)
        number, cost = of_plan[0]["trial"], of_plan[0]["cost"]
        columns = zip(*map(_score_cells, of_plan), strict=True)
        cells = ["" if number is None else str(number), f"{cost:,}", *map("\n".join, columns)]
        lines.append((cells, plain(plan)))
    return PlanTable(
        title="confirmed",
        columns=("trial", axis.replace("_", "-"), "score", "mean", "change", ""),
        rows=lines,
        note="\u00b1 after a mean: its standard error; after a change: its 95 % confidence "
        "interval (paired t-test over seeds)",
    )


def _score_cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    name = row["score"].replace("validation", "valid")
    digits = 2 if name.endswith("bleu") else 4
    change = ""
    if row["interval"] is not None:
        change = f"{row['change']:+.{digits}f} \u00b1{row['interval']:.{digits}f}"
    mean = f"{row['mean']:.{digits}f} \u00b1{row['error']:.{digits}f}"
    return name, mean, change, "baseline" if row["baseline"] else row["verdict"] or ""


def comparison_table(comparison: Comparison) -> Table:
    """Searches compared by their hypervolume, one a row."""
    table = Table(title="fronts compared", title_justify="left", box=None)
    table.add_column("study", overflow="fold")
    for name in ("trained", "front", "updates", "seconds", "hypervolume", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        table.add_row(
            Text(row.study),
            str(row.trials_trained),
            str(row.front_points),
            f"{row.updates:,}" if row.updates else "",
            f"{row.seconds:,.0f}",
            f"{row.hypervolume:,.6g}",
            Text(ratio_text(row)),
        )
    return table


def savings_table(findings: SensitivityFindings) -> Table:
    """What each unit saves within a tolerance, by its best choice."""
    table = Table(
        title=f"{findings.axis.replace('_', ' ')} saved by one unit within so many bits per token",
        title_justify="left",
        box=box.HORIZONTALS,
    )
    table.add_column("unit", no_wrap=True)
    for tolerance in TOLERANCES:
        table.add_column(f"{tolerance:g}", justify="right")
    for unit, cells in findings.savings():
        row = [
            Text.assemble(f"{saved:.1%}", (f"\n{choice}", "dim")) if saved > 0 else Text("-")
            for saved, choice in cells
        ]
        table.add_row(unit, *row)
    return table


def predictions_table(findings: SensitivityFindings) -> Table:
    """The recommended points of a predicted front."""
    table = Table(title="predicted front", title_justify="left", box=None)
    for name in (findings.axis.replace("_", " "), "change", "loss change", "measured"):
        table.add_column(name, justify="right")
    if findings.bleu:
        table.add_column("BLEU", justify="right")
    table.add_column("plan", overflow="fold")
    for prediction in findings.chosen:
        row = prediction_row(prediction, findings)
        score = row.get("bleu")
        bleu = ["" if score is None else f"{score:.2f}"] if findings.bleu else []
        table.add_row(
            f"{row['cost']:,}",
            f"{row['cost_change']:+.1%}",
            f"{row['corrected']:+.4f}",
            "" if row["measured"] is None else f"{row['measured']:+.4f}",
            *bleu,
            Text(str(prediction.plan)),
        )
    return table


def improvements_table(findings: SensitivityFindings) -> Table:
    """Recommended points whose plan was bettered by one next to it."""
    table = Table(box=None, show_header=any(o.plan != o.point.plan for o in findings.improvements))
    axis = findings.axis.replace("_", " ")
    for name in (axis, "measured", f"better: {axis}", "measured"):
        table.add_column(name, justify="right")
    table.add_column("plan", overflow="fold")
    for one in findings.improvements:
        if one.plan != one.point.plan:
            table.add_row(
                f"{one.point.cost:,}",
                f"{one.measured.change:+.4f}",
                f"{one.cost:,}",
                f"{one.best.change:+.4f}",
                Text(str(one.plan)),
            )
    return table


def findings_table(findings: Sequence[StepOutcome]) -> Table:
    """What works: schemes in rows, tasks in columns."""
    table = Table(box=box.HORIZONTALS, show_lines=True)
    table.add_column("scheme")
    tasks = list(dict.fromkeys(finding.task for finding in findings))
    for task in tasks:
        table.add_column(task.replace("_", " "))
    for scheme in dict.fromkeys(finding.scheme for finding in findings):
        row = [finding for finding in findings if finding.scheme == scheme]
        cells = [[_step_text(finding) for finding in row if finding.task == task] for task in tasks]
        table.add_row(scheme, *(Text("\n").join(lines) for lines in cells))
    return table


def _step_text(finding: StepOutcome) -> Text:
    if finding.fault is not None:
        return Text.assemble(f"{finding.step} ", ("FAILED", "red"))
    return Text.assemble(f"{finding.step} ", (finding.shown or "ok", "green"))


def pruned_table(pruned: Pruned) -> Table:
    """Parameters, bytes and heads before and after pruning."""
    table = Table(box=None)
    table.add_column("")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for name, (before, after) in (("parameters", pruned.parameters), ("bytes", pruned.bytes)):
        table.add_row(name, f"{before:,}", f"{after:,}", f"{after / before - 1:+.1%}")
    for place, (kept, of) in pruned.parts.items():
        table.add_row(place, str(of), str(kept), f"{kept / of - 1:+.1%}")
    return table


def converted_table(converted: Converted) -> Table:
    """What every attention module was converted to, with its errors where they were measured."""
    table = Table(box=None)
    for name in ("module", "converted to"):
        table.add_column(name)
    if converted.losses is not None:
        for name in ("error of scores", "of outputs"):
            table.add_column(name, justify="right")
    distils = any(module.distilled is not None for module in converted.modules)
    if distils:
        table.add_column("weighted, distilled", justify="right")
    for module in converted.modules:
        errors = []
        if module.errors is not None:
            scores, outputs = module.errors.scores, module.errors.outputs
            errors = ["" if scores is None else f"{scores:.2%}", f"{outputs:.2%}"]
        if module.distilled is not None:
            before, after = module.distilled.before, module.distilled.after
            errors.append(f"{before:.2%} -> {after:.2%}")
        table.add_row(module.place, str(module.choice), *errors)
    return table


def spaces_table(spaces: Sequence[MeasuredSpace], arch: str) -> Table:
    """Shipped search spaces with their sizes over an architecture."""
    table = Table(box=None, title=f"search spaces over {arch}", title_justify="left")
    table.add_column("space")
    for column in ("plans", "fewest", "most"):
        table.add_column(column, justify="right", no_wrap=True)
    for space in spaces:
        about = Text(space.name, style="bold").append(f"\n{space.description}", style="not bold")
        if space.misfit is not None:
            table.add_row(about.append(f"\n{space.misfit}", style="red"), "-", "-", "-")
            continue
        plans = f"{space.plans:,}" if space.plans < 1e9 else f"{space.plans:.1e}"
        table.add_row(about, plans, f"{space.fewest:,}", f"{space.most:,}")
    return table
