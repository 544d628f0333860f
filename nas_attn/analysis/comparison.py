"""Several searches on one reference: hypervolumes, what noise may do to them, fronts overlaid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nas_attn.amounts import parse_amount
from nas_attn.analysis.hypervolume import first_validation, weak_loss
from nas_attn.analysis.noise import Noise
from nas_attn.errors import RefusedError
from nas_attn.fairseq_tools.commands import maximises
from nas_attn.pareto import hypervolume, non_dominated
from nas_attn.report.context import cost_words
from nas_attn.report.figures import save_figure
from nas_attn.report.tables import markdown_text, write_rows
from nas_attn.search.objectives import Objectives
from nas_attn.search.storage import JOURNAL, open_storage
from nas_attn.search.store import Record
from nas_attn.search.trial_record import TrialRecord

logger = logging.getLogger(__name__)

REPLICATES = 2000
ASK_FOR_REFERENCE = "give a reference with --reference COST,LOSS"
COMPARED_SETTINGS = ("data", "training", "warm_start", "replay")
"""Settings on which losses depend; that they differ is said."""

# Okabe and Ito's colours, which people with any colour vision tell apart, without the yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

INTERVALS = {
    "seeds": (
        "The 95 % interval of a ratio is for the ratio that the same plans have without the noise "
        "of training, as means of very many seeds. One more training of the same plans has noise "
        "of its own and falls outside more often. Nor does it cover that a search that is started "
        "again proposes other plans."
    ),
    "trials": (
        "The 95 % interval of a ratio says how far it hangs on single trials, which are drawn "
        "again with replacement (the baseline stays). Not all trials have several seeds, so the "
        "noise of training is unknown and not covered; nor is it covered that a search that is "
        "started again proposes other plans, for trials of one search depend on each other."
    ),
}


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A search to compare, finished or running.

    Args:
        name: as it is shown.
        trials: on its record.
        objectives: that it weighs.
        settings: kept with the trials.
        folder: its run folder.
    """

    name: str
    trials: Sequence[TrialRecord]
    objectives: Objectives
    settings: dict[str, Any]
    folder: Path

    @property
    def trained(self) -> list[TrialRecord]:
        """Trials with a result of their own."""
        return [t for t in self.trials if t.is_trained and t.cost is not None and t.point]

    @property
    def baseline(self) -> TrialRecord | None:
        """The trained baseline, if there is one."""
        return next((trial for trial in self.trained if trial.is_baseline), None)

    @property
    def points(self) -> list[tuple[float, float]]:
        """First cost and loss of each trained trial, both better when lower."""
        return [_point(trial) for trial in self.trained]

    @property
    def front(self) -> list[tuple[float, float]]:
        """The points that no other dominates in first cost and loss, from small to large."""
        return sorted(self.points[index] for index in non_dominated(self.points))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The point up to which hypervolume counts.

    Args:
        cost: on the objectives' axis.
        loss: as people read it, so high BLEU is good.
        origin: where it comes from, in words.
    """

    cost: float
    loss: float
    origin: str

    def point(self, objectives: Objectives) -> tuple[float, float]:
        """Both better when lower."""
        return self.cost, -self.loss if objectives.maximise else self.loss


@dataclass(frozen=True, kw_only=True)
class Row:
    """One search among those compared.

    Args:
        study: its name.
        trials_trained: with a result of their own.
        front_points: how many of them nothing dominates in first cost and loss.
        updates: of all trainings, stopped and failed ones too; 0 in records of old.
        seconds: of all trainings.
        hypervolume: of first cost and loss, up to the reference.
        ratio: to the first search's; None where that has none.
        ratio_low: end of the ratio's 95 % interval; None if it has none, as the first search.
        ratio_high: its other end.
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
        searches: in the order given; the first is what others are measured by.
        reference: common to all.
        rows: one for each search.
        interval: what was drawn again, losses by their noise over seeds or trials.
        notes: what else a reader must know.
    """

    searches: Sequence[Searched]
    reference: Reference
    rows: Sequence[Row]
    interval: Literal["seeds", "trials"]
    notes: Sequence[str]

    @property
    def reference_text(self) -> str:
        """The reference and its origin, as a sentence."""
        objectives, reference = self.searches[0].objectives, self.reference
        return (
            f"Reference of the hypervolume: {reference.cost:,.10g} {cost_words(objectives.axis)}, "
            f"validation {objectives.loss} {reference.loss:.4f} ({reference.origin})."
        )

    @property
    def interval_text(self) -> str:
        """What the interval covers, and what not."""
        return INTERVALS[self.interval]


def open_run_folder(folder: Path) -> Record:
    """Open the record of a run folder, whose study file is not needed.

    Raises:
        RefusedError: the folder holds no journal with one study.
        SearchError: the journal cannot be read.
    """
    if not is_run_folder(folder):
        raise RefusedError(
            f"{folder} is no run folder of a search: it holds no {JOURNAL}; if the study is kept "
            "in another storage, name its study file"
        )
    storage = open_storage(None, folder)
    # Names of studies hold no spaces; those of confirmations and claims beside them do.
    names = [study.study_name for study in storage.get_all_studies()]
    names = [name for name in names if " " not in name]
    if len(names) != 1:
        raise RefusedError(f"{folder} holds {len(names)} studies; name the study file instead")
    study = storage.get_study_id_from_name(names[0])
    kept = storage.get_study_user_attrs(study).get("settings", {}).get("objectives", {})
    costs = kept.get("costs", [kept.get("parameters")])
    if "loss" not in kept or None in costs:
        raise RefusedError(f"{folder} has no objectives on record; name the study file instead")
    maximise = maximises(kept["loss"])
    objectives = Objectives(loss=kept["loss"], maximise=maximise, costs=tuple(costs), limits={})
    return Record(names[0], storage, objectives)


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds the journal of a search."""
    return (folder / JOURNAL).is_file()


def read_searched(record: Record, folder: Path) -> Searched:
    """Read what a search has done so far.

    Args:
        record: of the search.
        folder: its run folder, after which it is called.
    """
    return Searched(
        name=folder.resolve().name,
        trials=list(record.trials()),
        objectives=record.objectives,
        settings=record.settings(),
        folder=folder,
    )


def parse_reference(text: str) -> Reference | Literal["first"]:
    """Read a reference: `COST,LOSS`, such as 20M,8.5, or `first`.

    Raises:
        RefusedError: the text is none.
    """
    if text == "first":
        return "first"
    cost, _, loss = text.partition(",")
    try:
        number = float(loss)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise RefusedError(f"--reference: {text!r} is not COST,LOSS, such as 20M,8.5, nor first")
    amount = parse_amount(cost, "--reference")
    return Reference(cost=float(amount), loss=number, origin="given with --reference")


def reference_of(searches: Sequence[Searched]) -> Reference:
    """The cost of the first search's baseline, and a loss a little worse than the worst on the
    front of all searches together (see `weak_loss`).

    Raises:
        RefusedError: the first search's baseline is not trained.
    """
    first = searches[0]
    cost, loss = _point(_baseline_of(first))
    points = [point for search in searches for point in search.front]
    best = [(points[index][1], points[index][0]) for index in non_dominated(points)]
    weak = weak_loss(best, (loss, cost))
    return Reference(
        cost=cost,
        loss=-weak if first.objectives.maximise else weak,
        origin=f"cost of the baseline of {first.name}, and the worst loss on the common front made "
        "worse by a tenth of what the front spans",
    )


def early_reference_of(search: Searched) -> Reference:
    """A search's baseline's cost, and the loss of that one's first validation.

    Such a loss does not hang on what searches find, but any plan beats it by far, so that
    hypervolumes hardly differ.

    Raises:
        RefusedError: the baseline is not trained, or its first validation is not known.
    """
    baseline = _baseline_of(search)
    weak = first_validation(baseline, search.objectives.loss, search.folder)
    if weak is None:
        raise RefusedError(
            f"the first validation of {search.name}'s baseline is gone: {ASK_FOR_REFERENCE}"
        )
    origin = f"cost and first validation of the baseline of {search.name}"
    return Reference(cost=float(baseline.cost or 0), loss=weak, origin=origin)


def _baseline_of(search: Searched) -> TrialRecord:
    if search.baseline is None:
        raise RefusedError(f"the baseline of {search.name} is not trained: {ASK_FOR_REFERENCE}")
    return search.baseline


def compare(
    searches: Sequence[Searched],
    reference: Reference | Literal["first"] | None = None,
    *,
    replicates: int = REPLICATES,
    seed: int = 1,
) -> Comparison:
    """Compare the fronts of searches by their hypervolume of first cost and loss.

    A second cost is left out. The ratio of a search to the first has a 95 % interval by bootstrap;
    every search is drawn again on its own, `replicates` times:

    - Where every search has trials of several seeds, each trial's mean loss gets normal noise with
      the standard error of trials of such a loss (see `Noise`). Plans and costs stay, so the
      interval is for the ratio that the same plans have without noise; one more training of them
      has noise of its own, too, and varies more. (Seeds themselves are not drawn with replacement:
      of two or three that gives too little noise.)
    - Otherwise trials other than the baseline are drawn with replacement. This says how far the
      ratio hangs on single trials. It covers no noise of training.

    Neither covers another run of the search, of which one run tells nothing. A front keeps the best
    of what was drawn, so noise added to noise makes hypervolumes too large, and trials left out
    make them too small. The interval is therefore the drawn ratios moved so that their median is
    the observed ratio, cut off at nought. Trials that searches share are taken to be independent,
    which makes the interval wider than it need be. There is no interval where the first search's
    hypervolume vanishes in some replicate.

    Args:
        searches: two or more, the first of which others are measured by.
        reference: common to all; None takes that of `reference_of`, "first" the first search's by
            `early_reference_of`.
        replicates: of the bootstrap.
        seed: of the bootstrap; the same gives the same intervals, whatever else is compared.

    Raises:
        RefusedError: fewer than two searches, one given twice, other objectives, nothing trained,
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
    noises = [Noise.of(search.trials) for search in searches]
    by_seeds = all(noise is not None for noise in noises)
    drawn = [
        _replicates(
            search,
            corner,
            np.random.default_rng([seed, turn]),
            replicates,
            noise if by_seeds else None,
        )
        for turn, (search, noise) in enumerate(zip(searches, noises, strict=True))
    ]
    volumes = [hypervolume(search.front, corner) for search in searches]
    rows = []
    for search, volume, own in zip(searches, volumes, drawn, strict=True):
        ratio = volume / volumes[0] if volumes[0] else None
        low, high = (None, None) if search is first else _interval(ratio, own, drawn[0])
        rows.append(
            Row(
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
    return Comparison(
        searches=searches,
        reference=reference,
        rows=rows,
        interval="seeds" if by_seeds else "trials",
        notes=_notes(searches, rows),
    )


def _named_apart(searches: Sequence[Searched]) -> list[Searched]:
    """Searches of one name are called by their folders."""
    names = [search.name for search in searches]
    return [replace(s, name=str(s.folder)) if names.count(s.name) > 1 else s for s in searches]


def _check_comparable(searches: Sequence[Searched]) -> None:
    if len(searches) < 2:
        raise RefusedError("name two studies or more to compare")
    first = searches[0].objectives
    folders = [search.folder.resolve() for search in searches]
    for search, folder in zip(searches, folders, strict=True):
        own = search.objectives
        if (own.loss, own.axis) != (first.loss, first.axis):
            raise RefusedError(
                f"{search.name} weighs {own.loss} against {own.axis}, but {searches[0].name} "
                f"weighs {first.loss} against {first.axis}: compare studies of the same objectives"
            )
        if folders.count(folder) > 1:
            raise RefusedError(f"{search.name} is given twice; name each study once")
        if not search.trained:
            raise RefusedError(f"{search.name} has no trained trial yet; leave it out, or wait")


def _notes(searches: Sequence[Searched], rows: Sequence[Row]) -> list[str]:
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


def _replicates(
    search: Searched,
    corner: tuple[float, float],
    random: np.random.Generator,
    count: int,
    noise: Noise | None,
) -> NDArray[np.float64]:
    """Hypervolumes (count) of a search drawn again, by its noise or by trials; see `compare`."""
    trained = sorted(search.trained, key=_point)
    costs, losses = np.array([_point(trial) for trial in trained]).T
    errors = np.array([noise.at(t.loss or 0.0).error if noise else 0.0 for t in trained])
    others = np.array([i for i, trial in enumerate(trained) if not trial.is_baseline], dtype=int)
    volumes = np.empty(count)
    for turn in range(count):
        if noise is not None:
            again = losses + errors * random.standard_normal(len(losses))
        else:
            again = losses.copy()
            # A loss as weak as the reference adds nothing.
            again[np.setdiff1d(others, random.choice(others, len(others)))] = corner[1]
        volumes[turn] = _volume(costs, again, corner)
    return volumes


def _volume(
    costs: NDArray[np.float64], losses: NDArray[np.float64], corner: tuple[float, float]
) -> float:
    """Hypervolume of points (n) whose costs ascend."""
    best = np.minimum.accumulate(np.minimum(losses, corner[1]))
    widths = np.diff(np.append(np.minimum(costs, corner[0]), corner[0]))
    return float(widths @ (corner[1] - best))


def _interval(
    ratio: float | None, own: NDArray[np.float64], first: NDArray[np.float64]
) -> tuple[float | None, float | None]:
    if ratio is None or not (first > 0).all():
        return None, None
    low, median, high = np.quantile(own / first, [0.025, 0.5, 0.975])
    return max(0.0, float(ratio + low - median)), float(ratio + high - median)


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write compare.csv, compare.md, compare.png and compare.svg.

    Args:
        comparison: of searches.
        folder: where to; made if it is not there.

    Raises:
        RefusedError: the folder cannot be written.
    """
    common = {
        "interval_by": comparison.interval,
        "reference_cost": comparison.reference.cost,
        "reference_loss": comparison.reference.loss,
        "reference": comparison.reference.origin,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_rows([asdict(row) | common for row in comparison.rows], folder / "compare.csv")
        (folder / "compare.md").write_text(comparison_text(comparison), encoding="utf-8")
        _write_figure(comparison, folder)
    except OSError as error:
        raise RefusedError(
            f"{folder} cannot be written: {error}; name another with --out"
        ) from None


def comparison_text(comparison: Comparison) -> str:
    """The comparison in Markdown."""
    lines = ["# Fronts compared", "", markdown_text(comparison.reference_text), ""]
    lines += ["| study | trials trained | front points | updates | seconds | hypervolume | ratio |"]
    lines += ["|---|" + "---:|" * 6]
    for row in comparison.rows:
        cells = [
            markdown_text(row.study),
            str(row.trials_trained),
            str(row.front_points),
            f"{row.updates:,}",
        ]
        cells += [f"{row.seconds:,.0f}", f"{row.hypervolume:,.6g}", ratio_text(row)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", comparison.interval_text]
    for note in comparison.notes:
        lines += ["", markdown_text(note)]
    return "\n".join([*lines, "", "![The fronts overlaid](compare.png)", ""])


def ratio_text(row: Row) -> str:
    """A ratio with its interval."""
    if row.ratio is None:
        return "-"
    interval = "" if row.ratio_low is None else f" [{row.ratio_low:.3f}, {row.ratio_high:.3f}]"
    return f"{row.ratio:.3f}{interval}"


def _write_figure(comparison: Comparison, folder: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    objectives = comparison.searches[0].objectives
    sign = -1 if objectives.maximise else 1
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for turn, search in enumerate(comparison.searches):
        color, marker = COLORS[turn % len(COLORS)], MARKERS[turn % len(MARKERS)]
        costs, losses = zip(*search.points, strict=True)
        axes.scatter(
            costs, [sign * x for x in losses], s=14, marker=marker, color=color, alpha=0.3, lw=0
        )
        costs, losses = zip(*search.front, strict=True)
        axes.step(
            costs,
            [sign * loss for loss in losses],
            where="post",
            color=color,
            marker=marker,
            linestyle=LINES[turn % len(LINES)],
            linewidth=1.4,
            markersize=5.5,
            label=_label(search.name),
        )
    better = " (higher is better)" if objectives.maximise else ""
    axes.set_xlabel(cost_words(objectives.axis))
    axes.set_ylabel(f"validation {objectives.loss}{better}".replace("$", r"\$"))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.locator_params(axis="x", nbins=6)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    save_figure(figure, folder, "compare")


def _label(name: str) -> str:
    """A name for a legend: matplotlib takes $ for mathematics and hides what begins with _."""
    shown = "".join(sign if sign.isprintable() else " " for sign in name)
    return " " + shown.replace("$", r"\$")


def _point(trial: TrialRecord) -> tuple[float, float]:
    assert trial.cost is not None and trial.point is not None
    return float(trial.cost), trial.point[0]
