"""The `nas-attn` command: the only place that prints, exits and sets up logging."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from nas_attn.errors import ConfigError, NasAttnError, PlanError, RefusedError, SearchError
from nas_attn.fairseq_tools.pieces import Subword
from nas_attn.masking import MaskingFilter, hide_typed, mask, mask_tracebacks, replace_typed
from nas_attn.search.config import KnownCost

if TYPE_CHECKING:
    from nas_attn.analysis.agreement import Agreement
    from nas_attn.analysis.predictions import Limits, Predictions
    from nas_attn.analysis.searches import Searched
    from nas_attn.analysis.sensitivity import Findings
    from nas_attn.plan import AttentionPlan
    from nas_attn.search.candidates import Proposer
    from nas_attn.search.config import SearchConfig
    from nas_attn.search.executors.base import Executor
    from nas_attn.search.loop import Conductor, JobBuilder
    from nas_attn.search.objectives import Objectives
    from nas_attn.search.snapshot import Snapshot
    from nas_attn.search.status import Status
    from nas_attn.search.store import Record
    from nas_attn.search.trial_record import TrialRecord
    from nas_attn.study.sensitivity import SensitivityTarget
    from nas_attn.study.study import Study

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="nas-attn",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Search for attention schemes that share weights among heads: give a fairseq training and "
    "a budget, get the Pareto front of loss against parameters.",
    epilog="Begin with: nas-attn search demo",
)
bench = typer.Typer(no_args_is_help=True, help="Measure how fast attention is, on this machine.")
app.add_typer(bench, name="bench")
console = Console(
    width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120,
    # Plans, names and errors come from files, and are shown as they are.
    markup=False,
    emoji=False,
)

CONFIRMED = "confirmed_with_seeds"
"""Under this name the record keeps how many seeds the last confirmation had."""
QUEUE = "queue"
"""Under this name the record keeps plans that come before the sampler's."""
CHECKS, POINTS = 40, 8
"""Plans that test predictions, and that are recommended."""
NOTHING_INHERITS = "no choice of the space can take over what the baseline has learned"
SAY_SECONDS = 1.0
"""At most so often a search says how far it is, where there is no live display."""

Part = TypeVar("Part")

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]

StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study file, or the name of a shipped study.")
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a value of the study file, such as search.trials=40. Repeatable.",
    ),
]
RunsOption = Annotated[
    Path, typer.Option("--runs", metavar="DIR", help="Folder that holds the studies' run folders.")
]


@app.command()
def search(
    study: StudyArgument,
    set_: SetOption = [],  # noqa: B006  typer copies it
    executor: Annotated[
        str | None,
        typer.Option(
            help="local (sub-processes), ray, or simulated; the study file says if left out."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Address of a running Ray cluster, such as auto; implies ray."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Optuna storage that several drivers share, such as "
            "postgresql+psycopg://USER@HOST/DATABASE or grpc://HOST:PORT; env:NAME for an "
            "environment variable that holds it.",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all.")] = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Run a study, or go on with it.

    Trains the multi-head baseline first, then plans proposed by the study's sampler, and writes the
    report. Stop it at any time with Ctrl-C: the same command goes on where it stopped, trainings in
    progress included, and nothing that is finished runs again. Started several times at once, also
    on several machines that share a storage and the run folder, the drivers share the work; a
    driver that dies loses its trials to the others.
    """
    from nas_attn.search.provenance import keep_proposing, note_start
    from nas_attn.search.status import BUDGET
    from nas_attn.study.loading import load_study

    overrides = list(set_)
    if trials is not None:
        overrides.append(f"search.trials={trials}")
    if workers is not None:
        overrides.append(f"execution.workers={workers}")
    if storage is not None:
        overrides.append(f"execution.storage={storage}")
    if executor is not None or address is not None:
        overrides.append(f"execution.executor={executor or 'ray'}")
    loaded = load_study(study, overrides=overrides, runs=runs)
    _prepare_once(loaded)
    loaded.check_limits()
    _advise(loaded)
    record = _open_record(loaded, create=True)
    _keep(loaded, record)
    keep_proposing(record, loaded.proposing())
    note_start(record, _versions(), _machine())
    record.note(BUDGET, loaded.config.search.trials)
    failure: NasAttnError | None = None
    try:
        if loaded.config.search.predicts:
            conductor = _search_by_predictions(loaded, record, address)
        else:
            conductor = _search_by_sampler(loaded, record, address)
        if loaded.config.search.warm_start.rank_agreement and not conductor.has_given_up:
            _train_cold(loaded, record, address)
        conductor.outcome()
    except (ConfigError, RefusedError):
        raise  # nothing was started
    except NasAttnError as error:
        failure = error
    is_trained = any(trial.is_trained for trial in record.trials())
    if is_trained:
        troubles = [] if failure is None else [f"The last search ended early: {failure}"]
        page = _write_report(loaded, record, loaded.folder / "report", troubles)
        console.print(f"report: {page}", highlight=False, soft_wrap=True)
    if failure is not None:
        raise failure
    if not is_trained:
        raise NasAttnError("all trials have failed; nas-attn status says why, --trials adds some")


@app.command()
def confirm(
    study: StudyArgument,
    seeds: Annotated[
        int, typer.Option(min=2, help="Trainings of each point, with seeds of their own.")
    ] = 5,
    trial: Annotated[
        list[int] | None,
        typer.Option(
            help="Confirm this trial instead of the front. Repeatable.", show_default="front"
        ),
    ] = None,
    set_: SetOption = [],  # noqa: B006  typer copies it
    address: Annotated[
        str | None, typer.Option(help="Address of a running Ray cluster, such as auto.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Train the front's points and the baseline again, with fresh seeds, and open the test side.

    A search picks what looked best on the validation side, which flatters it. Here nothing is
    picked any more: every point is trained from nothing to its end, with seeds that the search did
    not use, and the study's loss and BLEU are measured on the test side, which nothing else reads.
    It goes on where it was interrupted, and more seeds can be asked for later.
    """
    from nas_attn.cli.screens import confirmation_table
    from nas_attn.fairseq_tools.splits import check_split
    from nas_attn.search.trial_record import front
    from nas_attn.study.loading import load_study

    overrides = list(set_) + ([f"execution.workers={workers}"] if workers is not None else [])
    overrides += ["execution.executor=ray"] if address is not None else []
    loaded = load_study(study, overrides=overrides, runs=runs)
    record = _open_record(loaded)
    _keep(loaded, record)
    trials = record.trials()
    trained = {point.number: point for point in trials if point.is_trained}
    for number in trial or ():
        if number not in trained:
            raise NasAttnError(f"trial {number} has no result of its own, so it is not confirmed")
    points = [trained[number] for number in trial] if trial else front(trials)
    plans = [point.plan for point in points if point.plan is not None]
    if not plans:
        raise NasAttnError("no trial is complete yet, so there is nothing to confirm")
    fresh = _fresh_seeds(loaded.config.training.seeds, seeds)
    if loaded.config.replay is None:
        examples = check_split(loaded.data_set, "test")
        console.print(f"the test split has {examples:,} examples", highlight=False)
    record.note(CONFIRMED, seeds)
    confirmed = _confirmation(loaded, record, seeds, create=True)
    chosen = {point.number for point in (*points, *(t for t in trained.values() if t.is_baseline))}
    console.print(
        f"trials {', '.join(map(str, sorted(chosen)))} of the search, each trained again with "
        f"seeds {', '.join(map(str, fresh))}",
        highlight=False,
        soft_wrap=True,
    )
    conductor = _run_given(
        loaded,
        confirmed,
        address,
        plans=[loaded.baseline, *plans],
        build_job=lambda number, plan, _: loaded.jobs.confirmation(number, plan, fresh),
        title=f"{record.name}, confirmed",
    )
    page = _write_report(loaded, record, loaded.folder / "report")
    rows = _confirmed_rows(loaded, record)
    console.print(confirmation_table(rows, loaded.objectives.axis))
    _say_failures(confirmed.trials())
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    conductor.outcome()


@app.command()
def sensitivity(
    study: Annotated[
        str,
        typer.Argument(
            metavar="STUDY-OR-CHECKPOINT",
            help="A study, or a trained checkpoint such as checkpoint_best.pt (with --data).",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="For a checkpoint: its binarised data set."),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help="Measure this space, by file or shipped name.",
            show_default="the study's own; for a checkpoint inherited_per_layer",
        ),
    ] = None,
    cost: Annotated[
        KnownCost | None,
        typer.Option(
            help="What plans are to save.",
            show_default="the study's first cost; for a checkpoint attention",
        ),
    ] = None,
    checks: Annotated[
        int,
        typer.Option(
            min=0, help="Plans, half of them random and half predicted, to test predictions on."
        ),
    ] = CHECKS,
    points: Annotated[int, typer.Option(min=2, help="Plans that are recommended.")] = POINTS,
    max_schemes: Annotated[
        int | None, typer.Option(min=1, help="So many schemes in a plan at most.")
    ] = None,
    keep_first_layer: Annotated[
        bool, typer.Option("--keep-first-layer", help="Leave the first layer of each site.")
    ] = False,
    set_: SetOption = [],  # noqa: B006  typer copies it
    address: Annotated[
        str | None, typer.Option(help="Address of a running Ray cluster, such as auto.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Plans at a time.")] = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Predict the front over all plans of a space from one trained baseline.

    Converts one unit of the baseline at a time (a layer, where the space decides layer by layer) to
    each choice of the space, without any training, and measures what that does to the validation
    loss. Such changes nearly add up, so the best plan at every size is found exactly. Whether they
    do is tested on plans that change everything at once; where not, nothing is recommended.

    A study that has not been searched trains its baseline first. It goes on where it was
    interrupted, and nothing is measured twice.

    nas-attn sensitivity checkpoint_best.pt --data data-bin/my_data

    The run folder of a checkpoint is named after its folder and file and a digest of its content;
    with --space, files go to a folder named after the space.
    """
    from nas_attn.analysis.predictions import Limits, Predictions
    from nas_attn.cli.screens import predictions_table, savings_table
    from nas_attn.report.sensitivity import write_findings
    from nas_attn.study.spaces import space_folder

    if Path(study).suffix == ".pt":
        target, record = _target_of_checkpoint(
            Path(study),
            data,
            space,
            set_,
            cost=cost or "attention",
            workers=workers,
            on_ray=address is not None,
            runs=runs,
        )
    else:
        target, record = _target_of_study(
            study, space, set_, workers=workers, address=address, runs=runs
        )
    limits = Limits(max_schemes, keep_first_layer)
    predictions = Predictions(target, record, axis=cost, create=True)
    _measure(predictions, address, limits=limits, checks=checks)
    findings = predictions.findings(limits, points)
    if not findings.front:
        raise NasAttnError("no plan within these limits can inherit from the baseline everywhere")
    if not findings.changes:
        raise NasAttnError("no single change could be measured; nas-attn status says why")
    folder = target.folder / "sensitivity"
    if space is not None:
        folder /= space_folder(space)  # what another space gave stays
    write_findings(findings, folder)
    console.print(savings_table(findings))
    console.print(findings.verdict, highlight=False, soft_wrap=True)
    if findings.is_guide:
        console.print(predictions_table(findings))
    console.print(f"written: {folder}", highlight=False, soft_wrap=True)
    if not findings.is_guide and checks:
        sys.exit(1)


@app.command()
def proposals(
    study: StudyArgument,
    check_: Annotated[
        bool, typer.Option("--check", help="Derive every proposal again and compare.")
    ] = False,
    set_: SetOption = [],  # noqa: B006  typer copies it
    runs: RunsOption = Path("runs"),
) -> None:
    """Show the log of proposals: which plan, by which driver, and what was running then.

    With --check every proposal is derived again from what its driver saw, by the study file as it
    is now. The exit status is 1 if one comes out otherwise.
    """
    from nas_attn.report.formatting import state_text
    from nas_attn.search.audit import derive_again, running_then
    from nas_attn.search.provenance import check_proposing
    from nas_attn.study.loading import load_study

    loaded = load_study(study, overrides=set_, runs=runs, is_read_only=True)
    record = _open_record(loaded)
    trials = record.trials()
    if not check_:
        table = Table("trial", "state", "driver", "running then", "plan", box=None)
        for trial, running in zip(trials, running_then(trials), strict=True):
            row = [str(trial.number), state_text(trial), trial.driver or ""]
            table.add_row(*row, " ".join(map(str, sorted(running))), Text(trial.text))
        console.print(table)
        return
    check_proposing(record, loaded.proposing())
    derived = list(derive_again(loaded.proposer(_queue(record)), trials))
    for derivation in derived:
        if not derivation.agrees:
            other = f"trial {derivation.trial.number}: the history gives {derivation.plan}"
            raise NasAttnError(f"{other}, but on record is {derivation.trial.plan}")
    console.print(f"{len(derived)} proposals, all as on record", highlight=False)


@app.command()
def report(
    study: StudyArgument,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to; the run folder's report/ if left out."),
    ] = None,
    set_: SetOption = [],  # noqa: B006  typer copies it
    runs: RunsOption = Path("runs"),
) -> None:
    """Write a study's report: index.html, CSV and JSON tables, figures, summary.md.

    Works at any time, also while the search runs.
    """
    from nas_attn.study.loading import load_study

    loaded = load_study(study, overrides=set_, runs=runs, is_read_only=True)
    record = _open_record(loaded)
    page = _write_report(loaded, record, out or loaded.folder / "report")
    console.print(f"report: {page}", highlight=False, soft_wrap=True)


@app.command()
def status(
    study: StudyArgument,
    watch: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="Look again every so many seconds, until Ctrl-C. Where there is no terminal, a "
            "line is printed whenever a count has changed.",
        ),
    ] = None,
    set_: SetOption = [],  # noqa: B006  typer copies it
    runs: RunsOption = Path("runs"),
) -> None:
    """Show how far a study is: counts, rate, time left, what runs, failures, and the front.

    Reads the record and changes nothing, so it works from any machine that sees the record.
    """
    from nas_attn.cli.screens import status_screen
    from nas_attn.search.status import read_status
    from nas_attn.study.loading import load_study

    loaded = load_study(study, overrides=set_, runs=runs, is_read_only=True)
    record, config = _open_record(loaded), loaded.config

    def look() -> Status:
        return read_status(
            record,
            trials=config.search.trials,
            grace_seconds=config.execution.grace_seconds,
        )

    if watch is None:
        console.print(status_screen(look(), loaded.objectives))
    else:
        _watch(look, loaded.objectives, watch)


@app.command()
def check(study: StudyArgument, set_: SetOption = []) -> None:  # noqa: B006  typer copies it
    """Check a study file without starting anything."""
    from nas_attn.study.loading import load_study

    loaded = load_study(study, overrides=set_)
    config = loaded.config
    search = config.search
    if search.strategy == "sensitivity":
        proposed = "strategy sensitivity"
    else:
        startup = "predicted" if search.enqueue == "sensitivity" else "stratified"
        proposed = f"sampler {search.sampler} after {search.startup_trials} {startup} trials"
    console.print(
        f"{config.name}: {loaded.space.size:,} plans; {search.trials} trials, "
        f"{len(config.training.seeds)} seed(s) each, are "
        f"{search.trials * len(config.training.seeds)} trainings; {proposed}",
        highlight=False,
        soft_wrap=True,
    )
    if config.data.folder.is_dir():
        loaded.check_limits()
        low, high = loaded.axis_range()
        console.print(f"{loaded.objectives.axis}: {low:,} to {high:,}")
        _advise(loaded)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def spaces(
    context: typer.Context,
    arch: Annotated[
        str, typer.Option(help="fairseq's architecture that the spaces are measured on.")
    ] = "transformer_wmt_en_de",
) -> None:
    """List the shipped search spaces with their sizes, and the shipped studies.

    A space's size is its number of plans, and its parameters are the fewest and the most that a
    model can have, embeddings left out. Every other flag goes to fairseq:

    nas-attn spaces --arch transformer_lm_gpt2_small --decoder-layers 6
    """
    from nas_attn.fairseq_tools.models import Sizer, blank_dictionary, parse_architecture
    from nas_attn.study.shipped import shipped_folder, shipped_names
    from nas_attn.study.spaces import load_space_config, measure_space

    try:
        args = parse_architecture(f"multi_head_{arch}", context.args)
        sizer = Sizer.of(args, [blank_dictionary(8)])
    except ValueError as error:
        raise NasAttnError(str(error)) from None
    table = Table(box=None, title=f"search spaces over {arch}", title_justify="left")
    table.add_column("space")
    for column in ("plans", "fewest", "most"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in shipped_names("search_spaces"):
        config = load_space_config(name)
        about = Text(name, style="bold").append(f"\n{config.description.strip()}", style="not bold")
        try:
            size, low, high = measure_space(config, sizer)
        except (ConfigError, PlanError) as error:
            table.add_row(about.append(f"\n{error}", style="red"), "-", "-", "-")
            continue
        plans = f"{size:,}" if size < 1e9 else f"{size:.1e}"
        table.add_row(about, plans, f"{low:,}", f"{high:,}")
    console.print(table)
    table = Table(box=None, title="studies", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    for name in shipped_names("studies"):
        description = _study_description(shipped_folder("studies") / f"{name}.yaml")
        table.add_row(name, Text(description.strip()))
    console.print(table)
    for folder in ("search_spaces", "studies"):
        console.print(f"{folder}: {shipped_folder(folder)}", highlight=False, soft_wrap=True)


@app.command()
def doctor(
    scheme: Annotated[
        list[str] | None,
        typer.Option(help="Try this scheme only, or mixed_plan. Repeatable.", show_default="all"),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Try this task only. Repeatable.", show_default="all"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Commands at a time.", show_default="CPUs")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep data, checkpoints and logs here.")
    ] = None,
) -> None:
    """Try fairseq's commands with every scheme, on made-up data and tiny models.

    Trains, resumes, and generates or evaluates: translation, language modelling, and masked
    language modelling with fine-tuning as a classifier. mixed_plan has another scheme in every
    layer of every site. All of it takes some minutes on two cores.
    """
    import tempfile

    from nas_attn.attention import SCHEMES
    from nas_attn.cli.screens import findings_table
    from nas_attn.fairseq_tools.self_test import MIXED, TASKS, examine

    if keep is not None and keep.exists():
        raise NasAttnError(f"{keep} exists; remove it or name another folder")
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    console.print(f"{versions}; {_machine()}", highlight=False)
    folder = keep or Path(tempfile.mkdtemp(prefix="nas-attn-doctor-"))
    schemes = scheme or [*SCHEMES, MIXED]
    cpus = len(os.sched_getaffinity(0))
    findings = list(examine(schemes, task or TASKS, folder, workers=workers or cpus))
    console.print(findings_table(findings))
    faults = [finding for finding in findings if finding.fault is not None]
    for finding in faults:
        log = folder / f"{finding.scheme}-{finding.task}-{finding.step}.log"
        _say_error(NasAttnError(f"{finding.scheme} {finding.task} {finding.step}: see {log}"))
    if faults:
        sys.exit(1)
    console.print(f"{len(findings)} commands, all work", highlight=False)
    if keep is None:
        shutil.rmtree(folder)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def count(
    context: typer.Context,
    arch: Annotated[
        str, typer.Option(help="Architecture, such as collaborative_transformer_wmt_en_de.")
    ],
    vocab: Annotated[
        int, typer.Option(help="Types of the (source) dictionary, specials included.")
    ],
    target_vocab: Annotated[
        int | None, typer.Option(help="Types of the target dictionary if it is another one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count a model's parameters exactly, without building it in memory.

    Effective parameters are all of them less attention's dead and redundant ones, which change
    nothing that the others could not.

    Every other flag goes to fairseq, so a model is described as for fairseq-train:

    nas-attn count --arch collaborative_transformer_wmt_en_de --vocab 32768
    --share-all-embeddings --shared-dim 128
    """
    from nas_attn.fairseq_tools.models import count_architecture

    try:
        size = count_architecture(arch, vocab, target_vocab, context.args)
    except ValueError as error:
        raise NasAttnError(str(error)) from None
    if as_json:
        sys.stdout.write(json.dumps(size._asdict()) + "\n")
        return
    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("attention", f"{size.attention:,}")
    table.add_row("without embeddings", f"{size.non_embedding:,}")
    table.add_row("total", f"{size.total:,}")
    table.add_row("effective", f"{size.effective:,}")
    console.print(table)


@app.command()
def prepare(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY | FILE [FILE]",
            help="A study, or one text file (language modelling), or two aligned ones named by "
            "language, such as train.en train.de; .gz is read too.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the data set goes (for files).")
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="SentencePiece pieces.")] = 8000,
    subword: Annotated[Subword, typer.Option(help="Kind of SentencePiece model.")] = "bpe",
    character_coverage: Annotated[
        float,
        typer.Option(
            min=0.98,
            max=1.0,
            help="Share of all characters that the model knows, from the most frequent on, such as "
            "0.9995 for Japanese or Chinese; others become <unk>.",
        ),
    ] = 1.0,
    valid_lines: Annotated[
        int, typer.Option(help="Lines held out if there are no valid and test files.")
    ] = 1000,
    test_lines: Annotated[
        int, typer.Option(help="Lines held out if there are no valid and test files.")
    ] = 1000,
    set_: SetOption = [],  # noqa: B006  typer copies it
) -> None:
    """Make a binarised fairseq data set with a SentencePiece model of the training side.

    If the files are named train.LANGUAGE and valid.LANGUAGE and test.LANGUAGE lie beside them,
    those are used, and refused if they are not complete and aligned. Where there are none, evenly
    spaced lines are held out.
    """
    from nas_attn.fairseq_tools.data import prepare as prepare_text

    cpus = len(os.sched_getaffinity(0))
    paths = [Path(name) for name in what]
    is_study = len(what) == 1 and (paths[0].suffix in (".yaml", ".yml") or not paths[0].exists())
    if is_study:
        from nas_attn.study.loading import load_study

        made = load_study(what[0], overrides=set_).prepare_data(workers=cpus)
    else:
        if out is None:
            raise NasAttnError("say where the data set goes with --out DIR")
        if out.exists():
            raise NasAttnError(f"{out} exists; remove it or name another folder")
        corpus, languages = _read_text(paths, valid_lines, test_lines)
        made = prepare_text(
            corpus,
            languages,
            out,
            vocab_size=vocab_size,
            subword=subword,
            character_coverage=character_coverage,
            workers=cpus,
        )
    console.print(f"data set: {made.folder}", highlight=False, soft_wrap=True)


@app.command()
def repair(
    study: StudyArgument,
    set_: SetOption = [],  # noqa: B006  typer copies it
    runs: RunsOption = Path("runs"),
) -> None:
    """Make the damaged record of a study readable again.

    Damage at the end of a record, as a power failure leaves it, is cut off by the next search; this
    is for any other. Keeps all operations that are whole, a copy of the record as it was
    (journal.log.before-repair-TIME), and what was dropped (journal.log.damaged). A trial whose own
    line is lost becomes a failed one, so that the others keep their numbers. End all drivers, and
    what else has the record open, before.
    """
    from nas_attn.search.repair import describe, repair_journal
    from nas_attn.search.storage import JOURNAL
    from nas_attn.study.loading import load_study

    loaded = load_study(study, overrides=set_, runs=runs, is_read_only=True)
    path = loaded.folder / JOURNAL
    if loaded.config.execution.storage is not None:
        raise RefusedError("only a record in a journal file is repaired, but this one is elsewhere")
    if not path.is_file():
        raise NasAttnError(f"no search has run in {loaded.folder} yet")
    done = repair_journal(
        path,
        loaded.config.name,
        [direction.value for direction in loaded.objectives.directions],
        grace_seconds=loaded.config.execution.grace_seconds,
    )
    for line in describe(done, path):
        console.print(line, highlight=False, soft_wrap=True)


@app.command()
def prune(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Of a training with the plugin.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the smaller checkpoint goes.")],
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Vote now, on the validation side of this data set: for a training that held no "
            "vote, also one with multi_head attention.",
        ),
    ] = None,
    refit: Annotated[
        bool,
        typer.Option(
            help="With --calibrate: solve the output projections again, so that the heads "
            "that stay give nearly what all heads gave."
        ),
    ] = False,
    keep: Annotated[
        str | None, typer.Option(help="With --calibrate: most_votes, pillars, threshold, random.")
    ] = None,
    num_groups: Annotated[int | None, typer.Option(min=1, help="With --calibrate: groups.")] = None,
    vote_threshold: Annotated[
        float | None, typer.Option(help="With --calibrate and keep threshold: the share of votes.")
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="With --calibrate: batches to vote on.")] = 20,
) -> None:
    """Cut out of a checkpoint the heads that were voted out.

    A training with the option `keep` has voted and masked, and the smaller model computes the same.
    With --calibrate any trained model is voted on now, and changes unless it is trained further.
    fairseq's commands load the result as any other checkpoint; the optimiser's state is left out.
    """
    from nas_attn.fairseq_tools.prune import load_checkpoint, prune_checkpoint
    from nas_attn.fairseq_tools.vote import vote_on_data

    if out.exists():
        raise RefusedError(f"{out} exists; remove it or name another file")
    given = {"keep": keep, "num_groups": num_groups, "vote_threshold": vote_threshold}
    options: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
    masked = None
    if calibrate is not None:
        load_checkpoint(checkpoint)  # refused early, in words
        if options.get("keep", "pillars") == "all":
            raise RefusedError("--keep all prunes nothing")
        options = {"keep": "pillars"} | options
        masked = vote_on_data(checkpoint, calibrate, options, refit=refit, num_batches=batches)
    elif refit or options:
        raise RefusedError("--refit, --keep, --num-groups and --vote-threshold need --calibrate")
    pruned = prune_checkpoint(checkpoint, out, masked)
    table = Table(box=None)
    table.add_column("")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for name, (before, after) in (("parameters", pruned.parameters), ("bytes", pruned.bytes)):
        table.add_row(name, f"{before:,}", f"{after:,}", f"{after / before - 1:+.1%}")
    for place, (kept, of) in pruned.parts.items():
        table.add_row(place, str(of), str(kept), f"{kept / of - 1:+.1%}")
    console.print(table)
    console.print(f"plan: {pruned.plan.dumps()}", highlight=False, soft_wrap=True)
    console.print(f"written: {out}", highlight=False, soft_wrap=True)


@app.command()
def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Of fairseq's transformer, transformer_lm or roberta, or of the plugin.",
        ),
    ],
    plan: Annotated[
        str,
        typer.Option(
            metavar="FILE-OR-JSON",
            help="The attention plan that is wanted, such as "
            """'{"encoder_self": {"scheme": "collaborative", "shared_dim": 128}}'; sites that it """
            "leaves out stay as they are.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the new checkpoint goes.")],
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="A binarised data set: what its training side says decides what is kept, and its "
            "validation side tells what is lost.",
        ),
    ] = None,
    refit: Annotated[
        bool, typer.Option(help="With --calibrate: solve the output projections again.")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Also to schemes that cannot inherit trained heads.")
    ] = False,
    means: Annotated[
        bool,
        typer.Option(
            "--means",
            help="To grouped_query and multi_query by means of heads (Ainslie et al. 2023), which "
            "is worse: only to compare with.",
        ),
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over a file that is there.")
    ] = False,
) -> None:
    """Turn a trained checkpoint into one with another attention plan.

    The new model computes the same where its plan has room for all that the heads do, else as
    nearly as it can; --calibrate says how nearly, and brings it nearer. fairseq's commands load the
    result as any other checkpoint; the optimiser's state is left out.
    """
    from nas_attn.fairseq_tools.convert import convert_checkpoint
    from nas_attn.plan import AttentionPlan

    if out.exists() and not replace:
        raise RefusedError(f"{out} exists; remove it, name another file, or say --replace")
    try:
        wanted = AttentionPlan.read(plan)
        found = convert_checkpoint(
            checkpoint, wanted, out, data=calibrate, refit=refit, force=force, means=means
        )
    except PlanError as error:
        raise RefusedError(str(error)) from None
    table = Table(box=None)
    for name in ("module", "converted to"):
        table.add_column(name)
    if calibrate is not None:
        for name in ("error of scores", "of outputs"):
            table.add_column(name, justify="right")
    for module in found.modules:
        errors = []
        if module.errors is not None:
            scores, outputs = module.errors.scores, module.errors.outputs
            errors = ["" if scores is None else f"{scores:.2%}", f"{outputs:.2%}"]
        table.add_row(module.place, str(module.choice), *errors)
    console.print(table)
    before, after = found.parameters
    console.print(f"parameters: {before:,} -> {after:,} ({after / before - 1:+.1%})")
    if found.losses is not None:
        first, second = found.losses
        console.print(
            f"validation loss, bits a token: {first:.4f} -> {second:.4f} ({second - first:+.4f})"
        )
    console.print(f"written: {out}", highlight=False, soft_wrap=True)


@bench.command("attention")
def bench_attention(
    scheme: Annotated[
        list[str] | None,
        typer.Option(help="Time this scheme only. Repeatable.", show_default="all"),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BATCHxTOKENS",
            help="Time this shape. Repeatable.",
            show_default="16x32, 8x128, 4x512, 1x2048, 1x4096",
        ),
    ] = None,
    decoding_shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BATCHxTOKENS",
            help="Decode a step after so many tokens. Repeatable.",
            show_default="16x512",
        ),
    ] = None,
    forms: Annotated[
        bool,
        typer.Option(help="Time each scheme in every form too, and as its paper writes it."),
    ] = False,
    causal: Annotated[bool, typer.Option(help="Attend to earlier positions only.")] = False,
    embed_dim: Annotated[int, typer.Option(min=1, help="Width.")] = 512,
    num_heads: Annotated[int, typer.Option(min=1, help="Heads.")] = 8,
    threads: Annotated[
        int, typer.Option(min=1, help="PyTorch's threads. With one, CPU time is taken.")
    ] = 1,
    device: Annotated[Device, typer.Option(help="Where.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Numbers.")] = "float32",
    seconds: Annotated[
        float, typer.Option(min=0.0, help="For each shape and phase, about; five rounds at least.")
    ] = 20.0,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where attention.csv and attention.png go.")
    ] = Path("runs/bench"),
) -> None:
    """Time every attention scheme against torch's and fairseq's own attention.

    Forward, forward and backward, a step of decoding, and reordering what that keeps. All take
    turns within the run. A number is the time over that of multi-head attention on torch's
    scaled_dot_product_attention, when decoding over that of fairseq's MultiheadAttention: below 1
    is faster. Takes about four minutes.
    """
    import torch

    from nas_attn.attention import get_scheme
    from nas_attn.benchmark.attention import DECODING_SHAPES, SHAPES, Setting, Shape, time_attention
    from nas_attn.benchmark.figure import write_figure
    from nas_attn.cli.screens import timings_tables

    if device == "cuda" and not torch.cuda.is_available():
        raise NasAttnError("PyTorch finds no CUDA device here")
    if embed_dim % num_heads:
        raise NasAttnError(f"{num_heads} heads do not divide a width of {embed_dim}")
    for name in scheme or ():
        get_scheme(name)
    try:
        shapes = [Shape.parse(text) for text in shape or ()] or SHAPES
        decoding = [Shape.parse(text) for text in decoding_shape or ()] or DECODING_SHAPES
    except ValueError as error:
        raise NasAttnError(str(error)) from None
    setting = Setting(
        embed_dim=embed_dim,
        num_heads=num_heads,
        device=device,
        dtype=getattr(torch, dtype),
        threads=threads,
        seconds=seconds,
        causal=causal,
    )
    clock = "CPU time" if device == "cpu" and threads == 1 else "wall time"
    about = (torch.__version__, _machine(), threads, clock, embed_dim, num_heads, dtype)
    console.print(
        "torch {}; {}; {} thread(s), {}; width {}, {} heads, {}".format(*about), highlight=False
    )
    timings = list(time_attention(setting, shapes, decoding, scheme or (), forms=forms))
    console.print(timings_tables(timings))
    out.mkdir(parents=True, exist_ok=True)
    common = {"device": device, "dtype": dtype, "threads": threads, "torch": torch.__version__}
    common |= {"embed_dim": embed_dim, "num_heads": num_heads}
    rows = [asdict(timing) | common for timing in timings]
    with (out / "attention.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_figure(timings, out / "attention.png")
    console.print(f"written: {out}/attention.csv, {out}/attention.png", highlight=False)


@bench.command(
    "fairseq", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def bench_fairseq(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="A binarised translation data set.")],
    scheme: Annotated[
        list[str] | None, typer.Option(help="Time this scheme. Repeatable.", show_default="all")
    ] = None,
    arch: Annotated[str, typer.Option(help="fairseq's architecture.")] = "transformer",
    rounds: Annotated[int, typer.Option(min=1, help="Times that everything is generated.")] = 3,
    training_rounds: Annotated[
        int, typer.Option(min=1, help="Times that everything is trained, a few updates each.")
    ] = 3,
    beam: Annotated[int, typer.Option(min=1, help="Hypotheses of a sentence.")] = 5,
    length: Annotated[int, typer.Option(min=1, help="Tokens of every translation.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="PyTorch's threads.")] = 2,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where checkpoints, logs and fairseq.csv go.")
    ] = Path("runs/bench-fairseq"),
) -> None:
    """Time fairseq-train and fairseq-generate with every scheme against stock fairseq.

    Models are hardly trained and translations equally long. A number is the speed over that of
    fairseq's own Transformer of the same size: above 1 is faster. A Transformer of base size takes
    about a minute a scheme and round on two cores. Every other flag goes to fairseq-train:

    nas-attn bench fairseq data-bin/my_data --max-tokens 1024 --share-all-embeddings
    """
    from nas_attn.attention import SCHEMES
    from nas_attn.benchmark.commands import time_commands
    from nas_attn.cli.screens import speeds_table

    if not data.is_dir():
        raise NasAttnError(f"there is no data set {data}; nas-attn prepare makes one")
    speeds = time_commands(
        data,
        out,
        scheme or list(SCHEMES),
        arch=arch,
        flags=context.args,
        rounds=rounds,
        training_rounds=training_rounds,
        beam=beam,
        length=length,
        threads=threads,
    )
    console.print(speeds_table(speeds))
    with (out / "fairseq.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["contender", "measure", "round", "value"])
        for speed in speeds:
            for measure in ("words_a_second", "decoding", "command"):
                for turn, value in enumerate(getattr(speed, measure)):
                    writer.writerow([speed.contender, measure, turn, value])
    console.print(f"written: {out}/fairseq.csv", highlight=False)


@app.command("plugin-dir")
def plugin_dir() -> None:
    """Print the plugin's folder, for fairseq's --user-dir."""
    from importlib.util import find_spec

    spec = find_spec("fairseq_plugin")
    if spec is None or not spec.submodule_search_locations:
        raise NasAttnError("the package fairseq_plugin is not installed beside nas_attn")
    sys.stdout.write(f"{spec.submodule_search_locations[0]}\n")


@app.command()
def export(
    study: StudyArgument,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder to write; must be new or empty.")
    ],
    trial: Annotated[
        int | None, typer.Option(metavar="N", help="Export this trial.", show_default=False)
    ] = None,
    best_under: Annotated[
        str | None,
        typer.Option(
            metavar="AMOUNT",
            help="Export the trial with the best loss among those whose first cost is at most so "
            "much: 500000, 500k, 20M, 1.5M.",
            show_default=False,
        ),
    ] = None,
    test_side: Annotated[
        bool,
        typer.Option(help="Put the data set's binarised test side in, to repeat its evaluation."),
    ] = True,
    set_: SetOption = [],  # noqa: B006  typer copies it
    runs: RunsOption = Path("runs"),
) -> None:
    """Write a folder with a trained model that can be used, and given away.

    It holds the best checkpoint of the trial's first seed (without heads that were voted out,
    optimiser state and paths of this machine), the plan, the dictionaries and the SentencePiece
    model, and a README.md with fairseq's commands, which work wherever the folder lies.

    nas-attn export my_study --best-under 20M --out small_model
    """
    from nas_attn.analysis.trials import Trials
    from nas_attn.literals import parse_count
    from nas_attn.study.loading import load_study
    from nas_attn.workflows.export import (
        best_within,
        comparison_text,
        export_trial,
        trial_with_number,
    )

    if (trial is None) == (best_under is None):
        raise RefusedError("say which trial: either --trial N or --best-under AMOUNT")
    budget = None if best_under is None else parse_count(best_under, "--best-under")
    loaded = load_study(study, overrides=set_, runs=runs, is_read_only=True)
    record = _open_record(loaded)
    _keep(loaded, record)
    trials = Trials.of(record, loaded.folder)
    if budget is not None:
        chosen = best_within(trials, budget)
    else:
        chosen = trial_with_number(trials, trial or 0)
    said = comparison_text(chosen, trials)
    for line in (f"trial {chosen.number}: {chosen.text}", said):
        console.print(Text(line), soft_wrap=True)
    with _interruptible():
        made = export_trial(loaded, chosen, trials, out, with_test=test_side)
    if made.test_bytes:
        console.print(
            f"the test side of the data set is in it ({made.test_bytes:,} bytes); "
            "--no-test-side leaves it out",
            highlight=False,
            soft_wrap=True,
        )
    files = f"checkpoint of {made.bytes:,} bytes; commands are in {made.folder / 'README.md'}"
    console.print(f"written: {made.folder} ({files})", highlight=False, soft_wrap=True)


@app.command()
def compare(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY...",
            help="Two or more: study files, names of studies, or run folders such as runs/NAME. "
            "The first is what others are measured by.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where compare.csv, .md, .png and .svg go.")
    ] = Path("runs/compare"),
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="COST,LOSS|first",
            help="Up to where hypervolume counts, such as 20M,8.5; first: the loss is that of the "
            "first validation.",
            show_default="cost of the first study's baseline, and a loss that is a little worse "
            "than the worst on all fronts together",
        ),
    ] = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Overlay the fronts of searches, finished or running, and compare their hypervolumes.

    All are measured up to one reference. Ratios to the first study come with a 95 % interval by
    bootstrap: of the noise over seeds where every study has several, else of single trials. What it
    covers is printed with it. Studies must weigh the same loss against the same first cost.

    nas-attn compare my_study runs/my_other_study --out runs/compare
    """
    from nas_attn.analysis.comparison import compare as compare_searches
    from nas_attn.analysis.searches import parse_reference
    from nas_attn.cli.screens import comparison_table
    from nas_attn.report.comparison import interval_text, reference_text, write_comparison

    given = None if reference is None else parse_reference(reference)
    compared = compare_searches([_searched(name, runs) for name in studies], given)
    write_comparison(compared, out)
    console.print(Text(reference_text(compared)), soft_wrap=True)
    console.print(comparison_table(compared))
    for line in (interval_text(compared), *compared.notes):
        console.print(Text(line), soft_wrap=True)
    console.print(f"written: {out}", highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command; errors become one message and an exit status (2 for refused input)."""
    _hide_passwords()
    mask_tracebacks()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a letter too many ends no search
    on_terminal = RichHandler(console=console, show_path=False, markup=False, highlighter=None)
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s" if console.is_terminal else "%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=[on_terminal if console.is_terminal else logging.StreamHandler(sys.stdout)],
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(MaskingFilter())
    for noisy in ("fairseq", "ray", "matplotlib", "torch", "httpx", "optuna"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        app()
    except (ConfigError, RefusedError) as error:
        _say_error(error)
        sys.exit(2)
    except NasAttnError as error:
        _say_error(error)
        sys.exit(1)


def _say_error(error: object) -> None:
    Console(stderr=True).print(Text(mask(f"nas-attn: {error}"), style="red"), soft_wrap=True)


def _hide_passwords() -> None:
    """Start this process again if there is a storage's password on its command line.

    All users of a machine see command lines, and Ray keeps them.
    """
    moved = hide_typed(sys.argv, os.environ)
    words = replace_typed(sys.orig_argv, moved)
    if words == sys.orig_argv:
        return  # nothing was typed, or not as this process's own command
    _say_error(
        "a password on a command line can be read by everybody on this machine, and stays in the "
        f"shell's history. It was moved to the environment variable {', '.join(moved)}: set it "
        "before, and give --storage env:NAME, or leave the password to ~/.pgpass (PGPASSFILE)"
    )
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *words[1:]], {**os.environ, **moved})


def _say_failures(trials: Sequence[TrialRecord]) -> None:
    from nas_attn.cli.screens import failure_text, plain

    for trial in trials:
        if trial.failure is not None:
            console.print(plain(failure_text(trial)), style="red")


def _watch(look: Callable[[], Status], objectives: Objectives, seconds: float) -> None:
    """Show a status again and again, until Ctrl-C: in place on a terminal, else lines at changes.

    Args:
        look: reads the status.
        objectives: of the study.
        seconds: between two looks.
    """
    from rich.live import Live

    from nas_attn.cli.screens import rate_text, status_line, status_screen

    with contextlib.suppress(KeyboardInterrupt), _interruptible():
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                while True:
                    live.update(status_screen(look(), objectives, fits=True), refresh=True)
                    time.sleep(seconds)
        said = None
        while True:
            status = look()
            counts = status_line(status), len(status.drivers)
            if counts != said:
                logger.info("%s; %s", counts[0], rate_text(status))
                said = counts
            time.sleep(seconds)


def _open_record(study: Study | SensitivityTarget, *, create: bool = False) -> Record:
    import optuna

    from nas_attn.search.storage import JOURNAL, open_storage
    from nas_attn.search.store import Record

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = study.execution.storage
    if url is None and not create and not (study.folder / JOURNAL).is_file():
        raise NasAttnError(
            f"no search has run in {study.folder} yet; if the study is kept in another storage, "
            "give --set execution.storage=URL"
        )
    storage = open_storage(url, study.folder)
    return Record(study.name, storage, study.objectives, create=create)


def _advise(study: Study) -> None:
    """Say what is odd about a study, though it can be searched."""
    from nas_attn.fairseq_tools.bleu import advice

    said = advice(study.config.objectives.bleu_tokenizer, study.data_set)
    if said:
        logger.warning("%s", said)


def _keep(study: Study, record: Record) -> None:
    """Keep settings and data at the first start, and refuse others later."""
    from nas_attn.study.same_data import keep_data
    from nas_attn.study.settings import keep_settings

    keep_settings(record, study.settings())
    keep_data(record, study.data_set)


def _searched(name: str, runs: Path) -> Searched:
    """A search by its run folder, study file or name; by name a run folder comes first."""
    import optuna

    from nas_attn.analysis.searches import is_run_folder, open_run_folder, read_searched
    from nas_attn.study.loading import load_study
    from nas_attn.study.shipped import shipped_names

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    is_file = Path(name).suffix in (".yaml", ".yml")
    for folder in () if is_file else (Path(name), runs / name):
        if is_run_folder(folder):
            return read_searched(open_run_folder(folder), folder)
    if Path(name).is_dir() and name not in shipped_names("studies"):
        open_run_folder(Path(name))  # says what it lacks
    study = load_study(name, runs=runs, is_read_only=True)
    return read_searched(_open_record(study), study.folder)


def _prepare_once(study: Study) -> None:
    """Make the data set if it is not there, by one of several drivers."""
    from nas_attn.search.locks import FileLock

    data = study.config.data
    if data.folder.is_dir():
        return
    data.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = data.folder.with_name(data.folder.name + ".lock")
    with FileLock(lock, f"the data set {data.folder}, which another driver makes"):
        if not data.folder.is_dir():
            console.print(f"preparing {data.folder} ...", highlight=False)
            study.prepare_data(workers=len(os.sched_getaffinity(0)))


def _fresh_seeds(used: list[int], count: int) -> list[int]:
    """Seeds that the search did not use."""
    first = max(used) + 1
    return list(range(first, first + count))


def _confirmation(study: Study, record: Record, seeds: int, *, create: bool = False) -> Record:
    """The record of a confirmation, in the storage of its search."""
    from nas_attn.search.store import Record

    # Names of studies hold no spaces, so this can be no other study's.
    name = f"{record.name} (confirmed with {seeds} seeds)"
    return Record(name, record.storage, study.objectives, create=create)


def _confirmed_rows(study: Study, record: Record) -> list[dict[str, Any]]:
    """What the last confirmation has given; empty if there was none."""
    from nas_attn.analysis.confirmation import confirmation_rows
    from nas_attn.analysis.trials import Trials

    seeds = record.notes().get(CONFIRMED)
    if seeds is None:
        return []
    numbers = {t.plan: t.number for t in record.trials() if t.plan is not None and t.is_trained}
    confirmed = _confirmation(study, record, seeds).trials()
    return confirmation_rows(Trials(confirmed, study.objectives), numbers)


def _run_search(
    study: Study | SensitivityTarget,
    record: Record,
    address: str | None,
    *,
    proposer: Proposer,
    config: SearchConfig,
    build_job: JobBuilder,
    title: str | None = None,
) -> Conductor:
    """Run a search as one of its drivers, to its end or to Ctrl-C.

    With a title it is no search, and no front is shown. Whether it had to end early is told by the
    conductor's outcome.
    """
    from nas_attn.search.leases import Ownership
    from nas_attn.search.loop import Conductor

    execution = study.execution
    ownership = Ownership(
        record,
        study.folder,
        heartbeat_seconds=execution.heartbeat_seconds,
        grace_seconds=execution.grace_seconds,
    )
    try:
        conductor = Conductor(
            record=record,
            ownership=ownership,
            proposer=proposer,
            config=config,
            build_job=build_job,
            retries=execution.retries,
        )
        runner = _make_executor(study, address)
        try:
            with _interruptible(), _live(study, conductor, runner.workers, title):
                runner.run(conductor)
        except KeyboardInterrupt:
            console.print("interrupted; the same command goes on where this one stopped")
            raise typer.Exit(130) from None
        return conductor
    finally:
        ownership.close()


def _run_given(
    study: Study | SensitivityTarget,
    record: Record,
    address: str | None,
    *,
    plans: Sequence[AttentionPlan],
    build_job: JobBuilder,
    title: str,
) -> Conductor:
    """Train plans whole, as far as the record does not hold them."""
    from nas_attn.search.config import StoppingConfig, WarmStartConfig

    known = [trial for trial in record.trials() if trial.counts]
    new = set(plans) - {trial.plan for trial in known if trial.state.name != "FAIL"}
    changes = {
        "stopping": StoppingConfig(),
        "warm_start": WarmStartConfig(),
        "trials": len(known) + len(new),
    }
    return _run_search(
        study,
        record,
        address,
        proposer=study.given_plans(plans),
        config=study.search.model_copy(update=changes),
        build_job=build_job,
        title=title,
    )


def _search_by_sampler(
    study: Study,
    record: Record,
    address: str | None,
    *,
    queue: Sequence[AttentionPlan] = (),
    trials: int | None = None,
) -> Conductor:
    """Run the study's own search; plans of a queue come first."""
    config = study.config.search
    return _run_search(
        study,
        record,
        address,
        proposer=study.proposer(queue),
        config=config if trials is None else config.model_copy(update={"trials": trials}),
        build_job=study.jobs.search_trial,
    )


def _search_by_predictions(study: Study, record: Record, address: str | None) -> Conductor:
    """Train points that single conversions predict to be best, and then what the study says."""
    from nas_attn.analysis.predictions import Limits, Predictions
    from nas_attn.report.sensitivity import write_findings
    from nas_attn.search.sensitivity import largest_steps, spread_predictions
    from nas_attn.study.sensitivity import target_of_study

    config = study.config.search
    queue = _queue(record)
    is_strategy = config.strategy == "sensitivity"
    wanted = config.trials - 1
    # Two thirds of the points are spread evenly; the others go where the front is unsure.
    first = -(-2 * wanted // 3) if is_strategy else min(config.startup_trials, wanted)
    if len(queue) >= first and not is_strategy:
        return _search_by_sampler(study, record, address, queue=queue)
    checkpoint = study.trained_checkpoint(_train_baseline(study, record, address))
    predictions = Predictions(target_of_study(study, checkpoint), record, create=True)
    if not (is_strategy or predictions.changes):
        logger.warning("%s, so the sampler starts without predictions", NOTHING_INHERITS)
        return _search_by_sampler(study, record, address)
    _measure(predictions, address, limits=Limits())
    findings = predictions.findings()
    if not findings.changes:
        raise NasAttnError("no single change could be measured; nas-attn status says why")
    if not findings.front:
        if is_strategy:
            raise NasAttnError(
                "no plan within objectives.limits can inherit from the baseline everywhere; widen "
                "them, or search with strategy: sampler"
            )
        return _search_by_sampler(study, record, address)
    write_findings(findings, study.folder / "sensitivity")
    console.print(findings.verdict, highlight=False, soft_wrap=True)
    if not findings.is_guide:
        if is_strategy:
            raise NasAttnError(
                "predictions are no guide for this model; search with strategy: sampler"
            )
        return _search_by_sampler(study, record, address)
    front = [p for p in findings.front if p.plan != study.baseline]
    if not queue:
        queue = [p.plan for p in spread_predictions(front, first)]
        record.note(QUEUE, [plan.to_json() for plan in queue])
    if not is_strategy:
        return _search_by_sampler(study, record, address, queue=queue)
    conductor = _search_by_sampler(
        study, record, address, queue=queue, trials=1 + min(len(queue), wanted)
    )
    if conductor.has_given_up or len(queue) >= wanted:
        write_findings(predictions.findings(), study.folder / "sensitivity")
        return conductor
    reached = [(t.cost or 0, (t.point or (0.0,))[0]) for t in record.trials() if t.is_trained]
    queue += [p.plan for p in largest_steps(front, reached, wanted - len(queue))]
    record.note(QUEUE, [plan.to_json() for plan in queue])
    conductor = _search_by_sampler(study, record, address, queue=queue, trials=1 + len(queue))
    write_findings(predictions.findings(), study.folder / "sensitivity")
    return conductor


def _target_of_study(
    name: str,
    space: str | None,
    overrides: Sequence[str],
    *,
    workers: int | None,
    address: str | None,
    runs: Path,
) -> tuple[SensitivityTarget, Record]:
    """A study's trained baseline, perhaps with another space, and the study's record."""
    from nas_attn.study.loading import load_study
    from nas_attn.study.sensitivity import target_of_study
    from nas_attn.study.spaces import space_over

    more = [f"execution.workers={workers}"] if workers is not None else []
    more += ["execution.executor=ray"] if address is not None else []
    study = load_study(name, overrides=[*overrides, *more], runs=runs)
    if study.config.replay is not None:
        raise NasAttnError("replayed learning curves leave no model that could be converted")
    _prepare_once(study)
    record = _open_record(study, create=True)
    _keep(study, record)
    checkpoint = study.trained_checkpoint(_train_baseline(study, record, address))
    other = None if space is None else space_over(space, study.space.shapes)
    return target_of_study(study, checkpoint, other), record


def _target_of_checkpoint(
    checkpoint: Path,
    data: Path | None,
    space: str | None,
    overrides: Sequence[str],
    *,
    cost: str,
    workers: int | None,
    on_ray: bool,
    runs: Path,
) -> tuple[SensitivityTarget, Record]:
    """A bare checkpoint, and the record of its run folder."""
    from dataclasses import replace

    from nas_attn.search.config import ExecutionConfig
    from nas_attn.study.same_data import keep_data
    from nas_attn.study.sensitivity import plain_name, target_of_checkpoint
    from nas_attn.study.settings import keep_settings

    if data is None:
        raise NasAttnError("say on which data set the checkpoint is measured with --data DATA")
    if overrides:
        raise NasAttnError("--set changes studies, but this is a checkpoint")
    target = target_of_checkpoint(
        checkpoint,
        data,
        space or "inherited_per_layer",
        cost=cost,
        runs=runs,
        execution=ExecutionConfig(executor="ray" if on_ray else "local", workers=workers),
    )
    # Earlier versions gave every checkpoint of a folder's name the same run folder.
    earlier = replace(target, name=plain_name(checkpoint))
    with contextlib.suppress(NasAttnError):
        if _open_record(earlier).settings() == target.settings:
            target = earlier
    record = _open_record(target, create=True)
    keep_settings(record, target.settings)
    keep_data(record, target.data)
    return target, record


def _queue(record: Record) -> list[AttentionPlan]:
    """Plans that were put before the sampler's."""
    from nas_attn.plan import AttentionPlan

    return [AttentionPlan.from_json(plan) for plan in record.notes().get(QUEUE, ())]


def _train_baseline(study: Study, record: Record, address: str | None) -> TrialRecord:
    """The trained baseline of a study; it is trained if it is not there."""
    from nas_attn.search.provenance import note_start

    def found() -> TrialRecord | None:
        return next((t for t in record.trials() if t.is_baseline and t.is_trained), None)

    baseline = found()
    if baseline is None:
        note_start(record, _versions(), _machine())
        _run_given(
            study,
            record,
            address,
            plans=[study.baseline],
            build_job=study.jobs.search_trial,
            title=f"{study.config.name}, the baseline",
        ).outcome()
        baseline = found()
    if baseline is None:
        raise NasAttnError("the baseline has no result; nas-attn status says why")
    return baseline


def _measure(
    predictions: Predictions,
    address: str | None,
    *,
    limits: Limits,
    checks: int = CHECKS,
) -> None:
    """Measure single changes of a trained model, and then plans that test what they predict."""
    from nas_attn.fairseq_tools.measure import calibrate
    from nas_attn.trials.layout import CALIBRATION_FILE

    target = predictions.target
    if not predictions.changes:
        raise NasAttnError(
            f"{NOTHING_INHERITS}, so there is nothing to measure: take another space, such as "
            "inherited_per_layer"
        )
    calibration = target.folder / "sensitivity" / CALIBRATION_FILE
    if target.checkpoint is not None and not calibration.is_file():
        console.print("recording what the baseline's attention sees ...", highlight=False)
        try:
            calibrate(target.checkpoint, target.data_folder, calibration)
        except NasAttnError as error:  # also what is refused: a baseline was trained before
            raise NasAttnError(f"the baseline cannot be measured: {error}") from None
    console.print(
        f"{len(predictions.changes)} single changes of {len(target.space.units)} units are "
        f"measured; {predictions.left_out} choices are the baseline's own, or cannot inherit and "
        "need training",
        highlight=False,
        soft_wrap=True,
    )

    def measure(plans: Sequence[AttentionPlan], title: str) -> None:
        conductor = _run_given(
            target,
            predictions.record,
            address,
            plans=plans,
            build_job=lambda number, plan, _: target.build_measurement(number, plan, calibration),
            title=f"{target.name}, {title}",
        )
        _say_failures(predictions.record.trials())
        conductor.outcome()

    measure([change.plan for change in predictions.changes], "single changes")
    tests = predictions.tests(checks, limits)
    if tests:
        measure(tests, "tests of predictions")


def _cold_record(study: Study, record: Record, *, create: bool = False) -> Record:
    """The record of what was trained from nothing beside warm trials, in the search's storage."""
    from nas_attn.search.store import Record

    # Names of studies hold no spaces, so this can be no other study's.
    return Record(f"{record.name} (cold)", record.storage, study.objectives, create=create)


def _train_cold(study: Study, record: Record, address: str | None) -> None:
    """Train some warm trials from nothing too, to see whether the order is the same."""
    from nas_attn.analysis.agreement import spread_evenly

    wanted = study.config.search.warm_start.rank_agreement
    chosen = spread_evenly(record.trials(), wanted)
    if len(chosen) < wanted:
        console.print(
            f"the rank agreement is wanted of {wanted} warm trials, but only {len(chosen)} are "
            "complete: give the search more trials",
            soft_wrap=True,
        )
    numbers = ", ".join(str(number) for number in sorted(trial.number for trial in chosen))
    console.print(
        f"trials {numbers} are trained from nothing too, for the rank agreement of warm and cold",
        highlight=False,
        soft_wrap=True,
    )
    conductor = _run_given(
        study,
        _cold_record(study, record, create=True),
        address,
        plans=[trial.plan for trial in chosen if trial.plan is not None],
        build_job=lambda number, plan, _: study.jobs.cold_trial(number, plan),
        title=f"{record.name}, from nothing",
    )
    if conductor.has_given_up:
        conductor.outcome()


def _agreement(study: Study, record: Record) -> Agreement | None:
    """What is known of the rank agreement of warm and cold trials."""
    from nas_attn.analysis.agreement import agreement_of

    if not study.config.search.warm_start.is_on:
        return None
    try:
        cold = _cold_record(study, record).trials()
    except SearchError:
        return None  # never asked for
    return agreement_of(record.trials(), cold)


def _make_executor(study: Study | SensitivityTarget, address: str | None) -> Executor:
    execution, resources = study.execution, study.resources
    if execution.executor == "simulated":
        from nas_attn.search.executors.simulated import SimulatedExecutor

        return SimulatedExecutor(execution.workers)
    if execution.executor == "ray":
        from nas_attn.search.executors.ray_tune.executor import RayExecutor

        data = study.data_folder
        return RayExecutor(execution, resources, address, data=data, runs=study.folder)
    from nas_attn.search.executors.local import LocalExecutor

    return LocalExecutor(execution, resources)


@contextlib.contextmanager
def _live(
    study: Study | SensitivityTarget, conductor: Conductor, workers: int, title: str | None
) -> Iterator[None]:
    """The live display on a terminal, plain lines elsewhere."""
    from rich.live import Live

    from nas_attn.cli.screens import SearchDisplay, duration

    display = SearchDisplay(
        title or study.name,
        study.objectives,
        workers,
        has_front=title is None,
        is_live=console.is_terminal,
    )
    display.update(conductor.snapshot)
    if console.is_terminal:
        conductor.on_change = display.update
        logging.getLogger("nas_attn.search.loop").setLevel(logging.WARNING)
        with Live(display, console=console, refresh_per_second=2):
            yield
            display.close(conductor.snapshot)
        return
    said, ended = 0.0, -1

    def say(make: Callable[[], Snapshot]) -> None:
        nonlocal said, ended
        if time.monotonic() - said < SAY_SECONDS:
            return
        snapshot = make()
        if snapshot.over == ended:
            return
        said, ended = time.monotonic(), snapshot.over
        left = snapshot.seconds_left(workers)
        logger.info(
            "%d of %d finished, %d stopped early, %d running, %d failed%s",
            snapshot.finished,
            snapshot.budget,
            snapshot.stopped,
            len(snapshot.running) + snapshot.elsewhere,
            snapshot.failed,
            "" if left is None else f", about {duration(left)} left",
        )

    conductor.on_change = say
    yield
    display.close(conductor.snapshot)
    console.print(display)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end a search as Ctrl-C does."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _write_report(study: Study, record: Record, out: Path, troubles: Sequence[str] = ()) -> Path:
    """Write what there is to report; what cannot be told is left out, and the report says why.

    Args:
        study: whose report it is.
        record: of its trials.
        out: folder of the report.
        troubles: what is to be said beforehand.
    """
    from nas_attn.analysis.trials import Trials
    from nas_attn.report import ReportContext, write_report
    from nas_attn.search.provenance import machine_of, versions_of

    said = [mask(trouble) for trouble in troubles]

    def part(what: str, make: Callable[[], Part], instead: Part) -> Part:
        try:
            return make()
        except NasAttnError as error:
            said.append(mask(f"{what} left out: {error}"))
            logger.warning("the report is without a part: %s", said[-1])
            return instead

    trials = Trials.of(record, study.folder)
    if not trials.trained:
        raise NasAttnError("no trial is complete yet, so there is nothing to report")
    notes = record.notes()
    context = ReportContext(
        name=study.config.name,
        description=study.config.description,
        seeds=len(study.config.training.seeds),
        settings=record.settings() | {"search": study.config.search.model_dump(mode="json")},
        versions=dict.fromkeys(_versions(), "(not on record)") | versions_of(notes),
        machine=machine_of(notes),
        evaluate={}
        if study.config.replay
        else part("Commands of evaluation are", lambda: study.evaluation_texts(trials), {}),
        confirmed=part("What was confirmed is", lambda: _confirmed_rows(study, record), []),
        fine_tuning=part("Fine-tuning is", lambda: _fine_tuning_updates(study), None),
        agreement=part(
            "The agreement of warm and cold is", lambda: _agreement(study, record), None
        ),
        findings=part("What was predicted is", lambda: _findings(study, record), None),
        troubles=said,
        shapes=study.space.shapes if _fit(study, trials) else {},
        study=() if study.config.replay else study.typed,
    )
    return write_report(trials, context, out)


def _fit(study: Study, trials: Sequence[TrialRecord]) -> bool:
    """Whether all plans on record are of the model that the study's file has today."""
    shapes = study.space.shapes
    try:
        for plan in [trial.plan for trial in trials if trial.plan is not None]:
            for site, shape in shapes.items():
                plan.layers(site, shape.num_layers)
    except PlanError:
        return False
    return True


def _findings(study: Study, record: Record) -> Findings | None:
    """What single conversions of the study's baseline predict; None if none was measured."""
    from nas_attn.analysis.predictions import Predictions
    from nas_attn.study.sensitivity import target_of_study

    if study.config.replay is not None:
        return None
    try:
        predictions = Predictions(target_of_study(study, None), record)
    except SearchError:
        return None
    findings = predictions.findings()
    return findings if findings.front and findings.changes else None


def _fine_tuning_updates(study: Study) -> int | None:
    """Updates at the end of every trial where there are warm starts."""
    if not study.config.search.warm_start.is_on:
        return None
    updates: int = study.fine_tuning.arguments["max-update"]
    return updates


def _versions() -> dict[str, str]:
    names = ("nas-attn", "torch", "optuna", "fairseq-fixed", "sentencepiece", "numpy")
    return {name: metadata.version(name) for name in names} | {"python": platform.python_version()}


def _machine() -> str:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{os.cpu_count()} CPUs ({platform.machine()})" + "".join(f", {gpu}" for gpu in gpus)


def _study_description(path: Path) -> str:
    import yaml

    return str(yaml.safe_load(path.read_text(encoding="utf-8")).get("description", ""))


def _read_text(
    paths: list[Path], valid_lines: int, test_lines: int
) -> tuple[dict[str, list[list[str]]], list[str]]:
    """Read text files with the splits beside them, or hold lines out."""
    from nas_attn.fairseq_tools.data import hold_out, read_corpus, splits_beside

    if len(paths) > 2:
        raise NasAttnError("give one text file, or two aligned ones")
    plain = [path.with_suffix("") if path.suffix == ".gz" else path for path in paths]
    endings = [path.suffix.removeprefix(".") for path in plain]
    if len(paths) == 2 and (endings[0] == endings[1] or "" in endings):
        raise NasAttnError("name aligned files by language, such as train.en and train.de")
    languages = endings if len(paths) == 2 else []
    found = splits_beside(paths, endings)
    if found is not None:
        return read_corpus(found), languages
    lines = read_corpus({"train": paths})["train"]
    corpus = hold_out(lines, valid_lines, test_lines)
    console.print(
        f"there are no validation and test files, so {valid_lines} and {test_lines} of "
        f"{len(lines[0])} lines are held out of the training text",
        highlight=False,
        soft_wrap=True,
    )
    return corpus, languages


if __name__ == "__main__":
    main()
