"""Compare samplers and stopping rules on tables of trainings, and go on with a comparison."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import optuna

from nas_attn.benchmark.search.figure import write_figure
from nas_attn.benchmark.search.peers import PEERS, check_peer, replay_peer
from nas_attn.benchmark.search.replayed import PREDICTED, RULES, SAMPLERS, Run, replay_search
from nas_attn.benchmark.search.steps import Step, steps_of
from nas_attn.benchmark.search.table import SearchTable, read_table
from nas_attn.errors import DataError, UsageError
from nas_attn.files import write_text
from nas_attn.literals import did_you_mean
from nas_attn.study.form import read_form
from nas_attn.study.shipped import shipped_folder
from nas_attn.study.study import Study

SHIPPED = ("demo", "multi30k")
"""Tables that nas-attn brings along."""
RESULTS = "search.csv"
COLUMNS = (
    "table", "digest", "sampler", "rule", "workers", "seed", "of_trials",
    "trials", "updates", "seconds", "share", "proposal_seconds",
)  # fmt: skip

Key = tuple[str, Run]
"""The name of a table, and a search on it."""


@dataclass(frozen=True)
class SearchResult:
    """What came of one search on a table.

    Args:
        steps: Where it stood after each trial.
        proposal_seconds: Mean seconds of a proposal.
        digest: Short hash of the table.
    """

    steps: Sequence[Step]
    proposal_seconds: float
    digest: str


@dataclass
class Compared:
    """Searches on tables, by table and run.

    Args:
        tables: The tables.
        results: What each search came to.
    """

    tables: Sequence[SearchTable]
    results: dict[Key, SearchResult] = field(default_factory=dict)

    def groups(self, table: str) -> dict[str, dict[int, Sequence[Step]]]:
        """Steps of each seed, by what the searches of a table are called."""
        found: dict[str, dict[int, Sequence[Step]]] = {}
        for (name, run), result in self.results.items():
            if name == table:
                found.setdefault(self.title(run), {})[run.seed] = result.steps
        return found

    def proposal_seconds(self, table: str) -> dict[str, float]:
        """Mean seconds of a proposal, by what the searches of a table are called."""
        found: dict[str, list[float]] = {}
        for (name, run), result in self.results.items():
            if name == table:
                found.setdefault(self.title(run), []).append(result.proposal_seconds)
        return {title: statistics.fmean(seconds) for title, seconds in found.items()}

    def title(self, run: Run) -> str:
        """What a search is called: its sampler, and the rest as far as searches differ in it."""
        runs = [run for _, run in self.results]
        parts = [run.sampler]
        if {run.rule for run in runs} != {"none"}:
            parts.append(run.rule)
        if len({run.workers for run in runs}) > 1:
            parts.append(f"{run.workers} workers")
        return ", ".join(parts)


def compare_searches(
    tables: Sequence[str],
    *,
    samplers: Sequence[str],
    rules: Sequence[str],
    workers: Sequence[int],
    seeds: int,
    trials: int,
    out: Path,
    study: str | None = None,
    allow_missing: bool = False,
    on_run: Callable[[int, int, str], None] = lambda done, of, words: None,
) -> Compared:
    """Run searches on tables, and write search.csv, search.png and search.svg.

    What search.csv holds of the same tables is not run again.

    Args:
        tables: Names of shipped tables, or files of curves.
        samplers: Our samplers and peers.
        rules: Stopping rules.
        workers: Numbers of trials at a time.
        seeds: Searches of each kind, with the seeds 1, 2, ...
        trials: Trials of a search, stopped ones included.
        out: Folder for the files.
        study: Study of a table that is a file.
        allow_missing: Take tables that lack plans of their space.
        on_run: Function that is called with how many searches are done, of how many, and the last.

    Raises:
        UsageError: there is no such table, sampler or rule, or a peer is not installed.
        DataError: a file is no table, or search.csv is none.
    """
    _check(samplers, rules)
    read = [_read(name, study, allow_missing) for name in tables]
    by_name = {table.name: table for table in read}
    if len(by_name) < len(read):
        raise UsageError("two tables have one name")
    compared = Compared(read)
    wanted = [
        (name, Run(sampler=sampler, rule=rule, workers=count, seed=seed, trials=trials))
        for name, sampler, rule, count, seed in product(
            by_name, samplers, rules, workers, range(1, seeds + 1)
        )
        if sampler not in PEERS or (rule, count) == ("none", 1)
    ]
    if not wanted:
        raise UsageError("peers are compared with --rule none and --workers 1 alone")
    out.mkdir(parents=True, exist_ok=True)
    kept = _read_results(out / RESULTS, by_name)
    with _quiet():
        for done, key in enumerate(wanted, start=1):
            name, run = key
            if key not in kept:
                kept[key] = _result(by_name[name], run)
                _write_results(out / RESULTS, kept)
            compared.results[key] = kept[key]
            on_run(done, len(wanted), f"{name}, {run.sampler}, {run.rule}, seed {run.seed}")
    figures = [out / "search.png", out / "search.svg"]
    groups = {name: compared.groups(name) for name in by_name}
    write_figure(groups, figures, with_time=set(workers) != {1})
    return compared


def shipped_tables() -> list[str]:
    """Names of the tables that nas-attn brings along."""
    return [name for name in SHIPPED if _shipped(name).is_file()]


def _shipped(name: str) -> Path:
    return shipped_folder("studies") / "tables" / f"{name}.csv.gz"


def _check(samplers: Sequence[str], rules: Sequence[str]) -> None:
    for what, names, known in (
        ("sampler", samplers, (*SAMPLERS, PREDICTED, *PEERS)),
        ("rule", rules, RULES),
    ):
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
                raise UsageError(f'no {what} "{name[:100]}"{hint}')
    for name in samplers:
        if name in PEERS:
            check_peer(name)


def _read(name: str, study: str | None, allow_missing: bool) -> SearchTable:
    if name in SHIPPED:
        path, of_study = _shipped(name), f"table_{name}"
    elif study is None:
        raise UsageError(
            f'no shipped table "{name[:100]}"; there are {", ".join(shipped_tables())}, and files '
            "of curves, with --study"
        )
    else:
        path, of_study = Path(name), study
    stem = path.name.removesuffix(".gz").removesuffix(".csv")
    # Nothing is trained, so its text need not be here.
    of_plans = Study.judged(read_form(of_study), is_read_only=True, needs_data=False)
    return read_table(stem, path, of_plans, allow_missing=allow_missing)


def _result(table: SearchTable, run: Run) -> SearchResult:
    replay = replay_peer if run.sampler in PEERS else replay_search
    outcome = replay(table, run)
    seconds = statistics.fmean(outcome.proposal_seconds) if outcome.proposal_seconds else 0.0
    return SearchResult(steps_of(table, outcome.trials), seconds, table.digest)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what searches log of their trials, and Optuna of its studies, warnings apart."""
    logger, optunas = logging.getLogger("nas_attn"), optuna.logging.get_verbosity()
    before = logger.level
    logger.setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
        optuna.logging.set_verbosity(optunas)


def _read_results(path: Path, tables: Mapping[str, SearchTable]) -> dict[Key, SearchResult]:
    """Results of earlier calls, apart from those of other states of a table."""
    rows: dict[Key, list[tuple[Step, float, str]]] = {}
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file, strict=True):
                table = tables.get(row["table"])
                if table is not None and row["digest"] != table.digest:
                    continue
                numbers = (int(row[name]) for name in ("workers", "seed", "of_trials"))
                workers, seed, trials = numbers
                run = Run(
                    sampler=row["sampler"],
                    rule=row["rule"],
                    workers=workers,
                    seed=seed,
                    trials=trials,
                )
                step = Step(
                    int(row["trials"]),
                    int(row["updates"]),
                    float(row["seconds"]),
                    float(row["share"]),
                )
                seconds = float(row["proposal_seconds"])
                rows.setdefault((row["table"], run), []).append((step, seconds, row["digest"]))
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no table of results: {error}") from None
    return {key: SearchResult([step for step, *_ in of], *of[0][1:]) for key, of in rows.items()}


def _write_results(path: Path, results: Mapping[Key, SearchResult]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (name, run), result in results.items():
        about = (name, result.digest, run.sampler, run.rule, run.workers, run.seed, run.trials)
        for step in result.steps:
            numbers = (step.trials, step.updates, f"{step.time:.1f}", f"{step.share:.6f}")
            writer.writerow((*about, *numbers, f"{result.proposal_seconds:.5f}"))
    write_text(path, text.getvalue())
