"""Commands about one study, or several: what is on record, and what comes of it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from nas_attn._deprecated import renamed_option
from nas_attn.cli.console import console, interruptible, say
from nas_attn.cli.loudness import JsonOption, say_json
from nas_attn.cli.options import RunsOption, SetOption, StorageOption, StudyArgument
from nas_attn.errors import UsageError


def proposals(
    study: StudyArgument,
    check_: Annotated[
        bool, typer.Option("--check", help="Derive every proposal again and compare.")
    ] = False,
    set_: SetOption = [],  # noqa: B006  typer copies it
    storage: StorageOption = None,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Show the log of proposals: which plan, by which driver, and what was running then.

    With --check every proposal is derived again from what its driver saw, by the study file as it
    is now. The exit status is 1 if one comes out otherwise.
    """
    from nas_attn import api
    from nas_attn.engine.audit import running_then
    from nas_attn.report.formatting import state_text
    from nas_attn.workflows.values import proposal_values

    results = api.open_study(study, overrides=set_, storage=storage, runs=runs)
    if check_:
        from nas_attn.workflows.proposals import check_proposals  # imports fairseq

        count = check_proposals(results.study, results.store)
        if as_json:
            say_json({"checked": count})
        say(f"{count} proposals, all as on record")
        return
    trials = results.store.trials()
    if as_json:
        say_json(proposal_values(trials))
        return
    table = Table("trial", "state", "driver", "running then", "plan", box=None)
    for trial, running in zip(trials, running_then(trials), strict=True):
        row = [str(trial.number), state_text(trial), trial.driver or ""]
        table.add_row(*row, " ".join(map(str, sorted(running))), Text(trial.text))
    console.print(table)


def report(
    study: StudyArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Output folder.", show_default="report/ in the run folder"
        ),
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="Write it every SECONDS until the search is over; the page reloads itself.",
        ),
    ] = None,
    set_: SetOption = [],  # noqa: B006  typer copies it
    storage: StorageOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Write a study's report: index.html, CSV and JSON tables, figures, summary.md.

    Works at any time, also while the search runs.
    """
    from nas_attn import api

    results = api.open_study(study, overrides=set_, storage=storage, runs=runs)
    if watch is None:
        page = results.report(out)
    else:
        from nas_attn.cli.live import watch_page

        page = watch_page(results, out, watch)
    say(f"report: {page}")


def status(
    study: StudyArgument,
    watch: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="Refresh every SECONDS, until Ctrl-C. Where there is no terminal, a line is "
            "printed whenever a count has changed.",
        ),
    ] = None,
    set_: SetOption = [],  # noqa: B006  typer copies it
    storage: StorageOption = None,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Show how far a study is: counts, rate, time left, what runs, failures, and the front.

    Reads the record and changes nothing, so it works from any machine that sees the record.
    """
    from nas_attn import api
    from nas_attn.cli.live import watch_status
    from nas_attn.cli.screens import status_screen

    if as_json and watch is not None:
        raise UsageError("--json prints one object: leave --watch out")
    results = api.open_study(study, overrides=set_, storage=storage, runs=runs)
    if as_json:
        from nas_attn.workflows.values import status_values

        say_json(status_values(results.status(), results.store.objectives))
    elif watch is None:
        console.print(status_screen(results.status(), results.store.objectives))
    else:
        watch_status(results.status, results.store.objectives, watch)


def check(
    study: StudyArgument,
    set_: SetOption = [],  # noqa: B006  typer copies it
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Check a study file without starting anything.

    Limits of costs hang on the model's size: before the data set exists, they are checked with a
    dictionary of data.text.vocab_size pieces.
    """
    from nas_attn import api
    from nas_attn.workflows.values import summarise

    summary = summarise(api.load(study, set_, runs))
    if as_json:
        say_json(asdict(summary))
        return
    say(summary.text)
    if summary.least is None:
        say("limits are checked once the data set is there: nas-attn prepare makes it")
    else:
        estimated = f" ({summary.estimated})" if summary.estimated else ""
        say(f"{summary.cost}: {summary.least:,} to {summary.most:,}{estimated}")


def repair(
    study: StudyArgument,
    set_: SetOption = [],  # noqa: B006  typer copies it
    storage: StorageOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Make the damaged record of a study readable again.

    Damage at the end of a record, as a power failure leaves it, is cut off by the next search; this
    is for any other. Keeps all operations that are whole, a copy of the record as it was
    (journal.log.before-repair-TIME), and what was dropped (journal.log.damaged). A trial whose own
    line is lost becomes a failed one, so that the others keep their numbers. End all drivers, and
    what else has the record open, before.
    """
    from nas_attn.engine.repair import describe
    from nas_attn.study.form import read_study
    from nas_attn.study.tree import execution_overrides
    from nas_attn.workflows.repair import repair_record

    changes = execution_overrides(set_, storage=storage)
    path, done = repair_record(read_study(study, changes, runs))
    for line in describe(done, path):
        say(line)


def export(
    study: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            help="A study, or a trained checkpoint such as checkpoint_best.pt (with --data).",
        ),
    ],
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
    format_: Annotated[
        Literal["plugin", "fairseq", "ctranslate2", "safetensors"],
        typer.Option(
            "--format",
            help="plugin: a checkpoint for fairseq with our plugin; fairseq: one for fairseq "
            "alone; ctranslate2: a folder for CTranslate2; safetensors: weights and JSON.",
        ),
    ] = "plugin",
    seed: Annotated[
        str | None,
        typer.Option(
            metavar="N|best",
            help="Export the training of this seed, or the best one.",
            show_default="the one nearest the trial's mean",
        ),
    ] = None,
    test_split: Annotated[
        bool | None,
        typer.Option(
            help="Put the data set's binarised test set in, to repeat its evaluation.",
            show_default="test-split",
        ),
    ] = None,
    test_side: Annotated[bool | None, typer.Option(hidden=True)] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Binarised data set of a checkpoint; a study has its own.",
            show_default=False,
        ),
    ] = None,
    set_: SetOption = [],  # noqa: B006  typer copies it
    storage: StorageOption = None,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Write a self-contained folder with a trained model, to use or share.

    It holds the best checkpoint of one seed (without heads that were voted out, optimiser state and
    paths of this machine), the plan, the dictionaries and the SentencePiece model, and a README.md
    that says how good the model is, and how to use it wherever the folder lies.

    The formats fairseq and ctranslate2 need a plan that multi-head attention can express. All but
    plugin must write the same tokens as the model on 50 validation sentences; if one does not, it
    is deleted, and the exit status is 1.
    """
    from nas_attn import api
    from nas_attn.workflows.values import export_values

    with_test = renamed_option("--test-side", "--test-split", test_side, test_split)
    if Path(study).suffix == ".pt":
        _export_checkpoint(Path(study), data, out, format_, as_json=as_json)
        return
    if data is not None:
        raise UsageError("a study has a data set; --data goes with a checkpoint (.pt)")
    results = api.open_study(study, overrides=set_, storage=storage, runs=runs)
    chosen = results.choose(trial=trial, best_under=best_under)
    console.print(Text(f"trial {chosen.number}: {chosen.text}"), soft_wrap=True)
    with interruptible():
        made = results.export(
            out, trial=chosen.number, with_test=with_test is not False, form=format_, seed=seed
        )
    if as_json:
        say_json(export_values(made))
        return
    for line in made.lines(results.study.typed):
        console.print(Text(line), soft_wrap=True)


def _export_checkpoint(
    path: Path, data: Path | None, out: Path, format_: Any, *, as_json: bool
) -> None:
    from nas_attn.workflows.export import export_checkpoint
    from nas_attn.workflows.model_card import size_text
    from nas_attn.workflows.values import checkpoint_values

    if data is None:
        raise UsageError("a checkpoint is exported with its data set: give --data DIR")
    with interruptible():
        made = export_checkpoint(path, data, out, format_)
    if as_json:
        say_json(checkpoint_values(made))
    if made.check is not None:
        say(str(made.check))
    say(f"written: {made.folder} (model of {size_text(made.bytes)})")


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
        Path,
        typer.Option(metavar="DIR", help="Output folder of compare.html, .csv, .md, .png, .svg."),
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
    as_json: JsonOption = False,
) -> None:
    """Overlay the fronts of searches, finished or running, and compare their hypervolumes.

    All are measured up to one reference. Ratios to the first study come with a 95 % interval by
    bootstrap: of the noise over seeds where every study has several, else of single trials. What it
    covers is printed with it. Studies must weigh the same loss against the same first cost.
    """
    from nas_attn.cli.tables import comparison_table
    from nas_attn.report.comparison import interval_text, reference_text
    from nas_attn.workflows.compare import compare_studies, find_search
    from nas_attn.workflows.values import comparison_values

    compared = compare_studies([find_search(name, runs) for name in studies], out, reference)
    if as_json:
        say_json(comparison_values(compared))
    console.print(Text(reference_text(compared)), soft_wrap=True)
    console.print(comparison_table(compared))
    for line in (interval_text(compared), *compared.notes):
        console.print(Text(line), soft_wrap=True)
    say(f"written: {out}")


def spaces(
    context: typer.Context,
    arch: Annotated[
        str, typer.Option(help="Architecture that the spaces are measured on, as for count.")
    ] = "transformer_wmt_en_de",
    as_json: JsonOption = False,
) -> None:
    """List the shipped search spaces with their sizes, and the shipped studies.

    A space's size is its number of plans, and its parameters are the fewest and the most that a
    model can have, embeddings left out. Every other flag goes to fairseq.
    """
    from nas_attn.cli.tables import spaces_table
    from nas_attn.study.shipped import shipped_description, shipped_folder, shipped_names
    from nas_attn.workflows.spaces import measure_spaces
    from nas_attn.workflows.values import space_values

    if as_json:
        say_json(space_values(measure_spaces(arch, context.args), arch))
        return
    console.print(spaces_table(list(measure_spaces(arch, context.args)), arch))
    table = Table(box=None, title="studies", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    for name in shipped_names("studies"):
        table.add_row(name, Text(shipped_description(name).strip()))
    console.print(table)
    for folder in ("search_spaces", "studies"):
        say(f"{folder}: {shipped_folder(folder)}")
