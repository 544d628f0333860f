"""What a comparison of searches shows when it is done, as rich tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nas_attn.benchmark.search.comparison import (
    LEVELS,
    Estimate,
    lead,
    mean_of,
    median_of,
    reached,
    shares_after,
)
from nas_attn.benchmark.search.steps import Step
from nas_attn.benchmark.search.table import WEAK, SearchTable
from nas_attn.workflows.bench_search import Compared

BUDGETS = (10, 20, 30, 40)
"""Trials after which shares are shown, beside the last."""


def searches_tables(compared: Compared, trials: int) -> Group:
    """For each table the shares, and when shares were reached, with 95 % intervals over seeds."""
    parts: list[Table | Text] = []
    for table in compared.tables:
        groups = compared.groups(table.name)
        parts += [
            Text(_about(table, groups), style="bold"),
            _shares(groups, trials),
            _reached(groups, table.updates, compared.proposal_seconds(table.name)),
        ]
    return Group(*parts)


def _about(table: SearchTable, groups: Mapping[str, Mapping[int, Sequence[Step]]]) -> str:
    costs = " and ".join(
        f"{cost:,.0f} {name}"
        for cost, name in zip(table.reference[1:], table.objectives.costs, strict=True)
    )
    missing = f" ({table.missing} more are not in the table)" if table.missing else ""
    seeds = max(len(runs) for runs in groups.values())
    return (
        f"{table.name}: {len(table.plans)} plans{missing}, {seeds} searches of each kind; "
        f"hypervolume up to the baseline's {costs} and a loss of {table.reference[0]:.4f} "
        f"(quantile {WEAK:g} of all plans)"
    )


def _shares(groups: Mapping[str, Mapping[int, Sequence[Step]]], trials: int) -> Table:
    budgets = [*(budget for budget in BUDGETS if budget < trials), trials]
    first = next(iter(groups))
    shown = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0))
    shown.add_column("share of the best, mean")
    for budget in budgets:
        shown.add_column(f"{budget} trials", justify="right")
    shown.add_column("median", justify="right")
    if len(groups) > 1:
        shown.add_column(f"{first} less this", justify="right")
    for name, runs in groups.items():
        at_end = list(shares_after(runs, trials).values())
        cells = [_text(mean_of(list(shares_after(runs, n).values())), ".3f") for n in budgets]
        cells.append(f"{median_of(at_end).value:.3f}")
        if len(groups) > 1:
            cells.append("" if name == first else _text(lead(groups[first], runs, trials), "+.3f"))
        shown.add_row(name, *cells)
    return shown


def _reached(
    groups: Mapping[str, Mapping[int, Sequence[Step]]], updates: int, seconds: Mapping[str, float]
) -> Table:
    steps = [step for runs in groups.values() for of_seed in runs.values() for step in of_seed]
    stops = any(step.updates < step.trials * updates for step in steps)
    shown = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0))
    shown.add_column("median to a share of")
    for level in LEVELS:
        shown.add_column(f"{level:.0%}\ntrials", justify="right")
        if stops:
            shown.add_column("\ntrainings", justify="right")
        shown.add_column("\nmissed", justify="right")
    shown.add_column("ms a\nproposal", justify="right")
    for name, runs in groups.items():
        cells = []
        for level in LEVELS:
            found = reached(runs, level)
            cells.append(_text(found.trials, ".0f"))
            if stops:
                cells.append(_text(found.trainings(updates), ".1f"))
            cells.append(f"{found.missed} of {len(runs)}" if found.missed else "")
        shown.add_row(name, *cells, f"{1000 * seconds[name]:.0f}")
    return shown


def _text(estimate: Estimate, form: str) -> str:
    value, low, high = (
        "never" if math.isinf(number) else format(number, form)
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return value if low == high == "never" else f"{value} [{low}, {high}]"
