"""Several searches on one reference: hypervolumes, and what noise may do to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nas_attn.analysis.bootstrap import interval_of, replicates_of
from nas_attn.analysis.searches import ReferencePoint, RunSummary, early_reference_of, reference_of
from nas_attn.errors import UsageError
from nas_attn.pareto import hypervolume

REPLICATES = 2000
COMPARED_SETTINGS = ("data", "training", "warm_start", "replay")
"""Settings on which losses depend; that they differ is said."""


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One search among those compared.

    Args:
        study: Name of the study.
        trials_trained: Number of trials with a result of their own.
        front_points: Number of those that nothing dominates in first cost and loss.
        updates: Updates of all trainings, stopped and failed ones too; 0 in records of old.
        seconds: Time of all trainings, in seconds.
        hypervolume: Hypervolume of first cost and loss, up to the reference.
        ratio: Ratio to the first search's hypervolume; None where that has none.
        ratio_low: End of the ratio's 95 % interval; None if it has none, as the first search.
        ratio_high: Other end of that interval.
    """

    study: str
    trials_trained: int
    front_points: int
    updates: int
    seconds: float
    hypervolume: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several searches compared.

    Args:
        searches: Searches in the order given; the first is what others are measured by.
        reference: Reference point, common to all.
        rows: Rows, one for each search.
        interval: Description of what was drawn again: losses by their noise over seeds, or trials.
        notes: Remarks that a reader must know, in sentences.
    """

    searches: Sequence[RunSummary]
    reference: ReferencePoint
    rows: Sequence[ComparisonRow]
    interval: Literal["seeds", "trials"]
    notes: Sequence[str]


def compare(
    searches: Sequence[RunSummary],
    reference: ReferencePoint | Literal["first"] | None = None,
    *,
    replicates: int = REPLICATES,
    seed: int = 1,
) -> Comparison:
    """Compare the fronts of searches by their hypervolume of first cost and loss.

    A second cost is left out. The ratio of a search to the first has a 95 % interval by bootstrap
    (see `nas_attn.analysis.bootstrap`).

    Args:
        searches: Searches, two or more, the first of which others are measured by.
        reference: Reference point, common to all; None takes that of `reference_of`, "first" the
            first search's by `early_reference_of`.
        replicates: Number of replicates of the bootstrap.
        seed: Seed of the bootstrap; the same gives the same intervals, whatever else is compared.

    Raises:
        UsageError: fewer than two searches, one given twice, other objectives, nothing trained,
            or no reference.
    """
    searches = _named_apart(searches)
    _check_comparable(searches)
    first = searches[0]
    if reference is None:
        reference = reference_of(searches)
    elif reference == "first":
        reference = early_reference_of(first)
    corner = reference.point(first.objectives)
    noises = [search.trials.noise for search in searches]
    by_seeds = all(noise is not None for noise in noises)
    drawn = [
        replicates_of(
            search,
            corner,
            np.random.default_rng([seed, turn]),
            replicates,
            noise if by_seeds else None,
        )
        for turn, (search, noise) in enumerate(zip(searches, noises, strict=True))
    ]
    rows = _rows(searches, corner, drawn)
    return Comparison(
        searches=searches,
        reference=reference,
        rows=rows,
        interval="seeds" if by_seeds else "trials",
        notes=_notes(searches, rows),
    )


def _rows(
    searches: Sequence[RunSummary],
    corner: tuple[float, float],
    drawn: Sequence[NDArray[np.float64]],
) -> list[ComparisonRow]:
    volumes = [hypervolume(search.front, corner) for search in searches]
    rows = []
    for turn, (search, volume, own) in enumerate(zip(searches, volumes, drawn, strict=True)):
        ratio = volume / volumes[0] if volumes[0] else None
        low, high = interval_of(ratio, own, drawn[0]) if turn else (None, None)
        rows.append(
            ComparisonRow(
                study=search.name,
                trials_trained=len(search.trained),
                front_points=len(search.front),
                updates=sum(trial.updates for trial in search.trials),
                seconds=sum(trial.seconds for trial in search.trials),
                hypervolume=volume,
                ratio=ratio,
                ratio_low=low,
                ratio_high=high,
            )
        )
    return rows


def _named_apart(searches: Sequence[RunSummary]) -> list[RunSummary]:
    """Searches of one name are called by their folders."""
    names = [search.name for search in searches]
    return [replace(s, name=str(s.folder)) if names.count(s.name) > 1 else s for s in searches]


def _check_comparable(searches: Sequence[RunSummary]) -> None:
    if len(searches) < 2:
        raise UsageError("name two studies or more to compare")
    first = searches[0].objectives
    folders = [search.folder.resolve() for search in searches]
    for search, folder in zip(searches, folders, strict=True):
        own = search.objectives
        if (own.metric, own.primary_cost) != (first.metric, first.primary_cost):
            raise UsageError(
                f"{search.name} weighs {own.metric} against {own.primary_cost}, but "
                f"{searches[0].name} weighs {first.metric} against {first.primary_cost}: compare "
                "studies of the same objectives"
            )
        if folders.count(folder) > 1:
            raise UsageError(f"{search.name} is given twice; name each study once")
        if not search.trained:
            raise UsageError(f"{search.name} has no trained trial yet; leave it out, or wait")


def _notes(searches: Sequence[RunSummary], rows: Sequence[ComparisonRow]) -> list[str]:
    first, notes = searches[0], []
    for search in searches[1:]:
        differs = [
            name
            for name in COMPARED_SETTINGS
            if search.settings.get(name) != first.settings.get(name)
        ]
        if differs:
            notes.append(
                f"{search.name} has other settings than {first.name} ({', '.join(differs)}): "
                "see whether losses can be compared."
            )
    if rows[0].ratio is None:
        notes.append(
            f"No trial of {first.name} is better than the reference in both cost and loss, so "
            "there are no ratios: give a weaker one with --reference COST,LOSS."
        )
    elif any(row.ratio_low is None for row in rows[1:]):
        notes.append(f"{first.name} has too few points below the reference for intervals.")
    return notes
