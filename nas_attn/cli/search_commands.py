"""Commands that train: search, confirm, sensitivity; and what is said of a search."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas_attn.cli.console import console, resumable, say
from nas_attn.cli.loudness import JsonOption, QuietOption, VerboseOption, say_json
from nas_attn.cli.options import (
    AddressOption,
    RunsOption,
    SetOption,
    StorageOption,
    StudyArgument,
    WorkersOption,
    parse_limits,
)
from nas_attn.errors import PlanError, UsageError
from nas_attn.measures import FurtherMetric, PredictedCost, Scores
from nas_attn.workflows.defaults import CHECKS, POINTS, SEEDS

if TYPE_CHECKING:
    from nas_attn.plan import AttentionPlan
    from nas_attn.workflows.sensitivity import PredictedFront


def search(
    study: StudyArgument,
    set_: SetOption = [],  # noqa: B006  typer copies it
    executor: Annotated[
        str | None,
        typer.Option(
            help="local (sub-processes), ray, or simulated; the study file says if left out."
        ),
    ] = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    storage: StorageOption = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Number of trials, the baseline included.")
    ] = None,
    report_every: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="Write the report every SECONDS while the search runs; its page reloads itself.",
        ),
    ] = None,
    runs: RunsOption = Path("runs"),
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run or resume a study.

    Trains the multi-head baseline first, then plans proposed by the study's sampler, and writes the
    report. Stop it at any time with Ctrl-C: the same command resumes it, trainings in progress
    included, and nothing that is finished runs again. Started several times at once, also
    on several machines that share a storage and the run folder, the drivers share the work; a
    driver that dies loses its trials to the others.
    """
    from nas_attn import api
    from nas_attn.cli.live import TerminalEvents

    with resumable():
        api.search(
            study,
            trials=trials,
            workers=workers,
            executor=executor,
            address=address,
            storage=storage,
            report_every=report_every,
            overrides=set_,
            runs=runs,
            events=TerminalEvents(),
        )


def confirm(
    study: StudyArgument,
    seeds: Annotated[
        int, typer.Option(min=2, help="Trainings of each point, with seeds of their own.")
    ] = SEEDS,
    trial: Annotated[
        list[int] | None,
        typer.Option(
            help="Confirm this trial instead of the front. Repeatable.", show_default="front"
        ),
    ] = None,
    plan: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLAN",
            help="Confirm this plan, JSON text or a file, which no search need have trained. "
            "Repeatable.",
        ),
    ] = None,
    set_: SetOption = [],  # noqa: B006  typer copies it
    address: AddressOption = None,
    workers: WorkersOption = None,
    storage: StorageOption = None,
    runs: RunsOption = Path("runs"),
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train the front and the baseline again with fresh seeds; evaluate them on the test set.

    A search picks what looked best on the validation set, which flatters it. Here nothing is
    picked any more: every point is trained from scratch to its end, with seeds that the search did
    not use, and the study's loss and BLEU are measured on the test set, which nothing else reads.
    Run it again to resume; more seeds can be asked for later.
    """
    from nas_attn import api
    from nas_attn.cli.live import TerminalEvents, say_failure
    from nas_attn.cli.tables import confirmation_table
    from nas_attn.study.tree import execution_overrides
    from nas_attn.workflows.confirm import confirm as confirm_study

    changes = execution_overrides(set_, workers=workers, storage=storage, address=address)
    loaded = api.load(study, changes, runs)
    plans = [_plan_of(text) for text in plan or ()]
    with resumable():
        done = confirm_study(
            loaded,
            seeds=seeds,
            trials=trial or (),
            plans=plans,
            address=address,
            events=TerminalEvents(),
        )
    console.print(confirmation_table(done.rows, loaded.objectives.primary_cost))
    for failed in done.failed:
        say_failure(failed, "the confirmation of")
    if done.page is not None:
        say(f"report: {done.page}")
    if done.failure is not None:
        raise done.failure


def _plan_of(text: str) -> "AttentionPlan":
    """A plan that a user names: JSON text, or a file of it."""
    from nas_attn.plan import AttentionPlan

    try:
        return AttentionPlan.read(text)
    except PlanError as error:
        raise UsageError(f"--plan: {error}") from None


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
            show_default="the study's own; for a checkpoint inherited_voted_per_layer",
        ),
    ] = None,
    cost: Annotated[
        PredictedCost | None,
        typer.Option(
            help="Cost to minimise.",
            show_default="the study's first cost; for a checkpoint attention",
        ),
    ] = None,
    checks: Annotated[
        int,
        typer.Option(
            min=0, help="Plans, half of them random and half predicted, to test predictions on."
        ),
    ] = CHECKS,
    points: Annotated[int, typer.Option(min=2, help="Number of plans to recommend.")] = POINTS,
    max_schemes: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of schemes in a plan.")
    ] = None,
    keep_first_layer: Annotated[
        bool, typer.Option("--keep-first-layer", help="Keep the first layer of each site as it is.")
    ] = False,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help="The most that plans may cost, such as cache_bytes=4k. Repeatable.",
            show_default="the study's limits",
        ),
    ] = None,
    second_cost: Annotated[
        PredictedCost | None,
        typer.Option(help="Find the plans that no other dominates in this cost as well."),
    ] = None,
    distil: Annotated[
        bool,
        typer.Option(
            "--distil",
            help="Train converted modules alone before they are measured (see convert).",
        ),
    ] = False,
    scores: Annotated[
        Scores | None,
        typer.Option(
            help="measured: a pass over the validation set for each conversion. gradient: one "
            "pass for all. auto: the same, and a twelfth are measured, those that decide what "
            "recommended plans lose.",
            show_default="the study's search.scores, else auto; with --distil measured",
        ),
    ] = None,
    improve: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Look next to the recommended plans for better ones, by N more passes.",
        ),
    ] = 0,
    metric: Annotated[
        FurtherMetric | None,
        typer.Option(
            help="bleu: the recommended plans translate the validation set, as a last check."
        ),
    ] = None,
    set_: SetOption = [],  # noqa: B006  typer copies it
    address: AddressOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Plans to measure in parallel.")
    ] = None,
    storage: StorageOption = None,
    runs: RunsOption = Path("runs"),
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict the front over all plans of a space from one trained baseline.

    Converts one unit of the baseline at a time (a layer, where the space decides layer by layer) to
    each choice of the space, without any training, and measures what that does to the validation
    loss. Such changes nearly add up, so the best plan at every size is found exactly. Whether they
    do is tested on plans that change everything at once; where not, nothing is recommended.

    A study that has not been searched trains its baseline first. Run the same command again to
    resume; nothing is measured twice.

    The run folder of a checkpoint is named after its folder and file and a digest of its content;
    with --space, files go to a folder named after the space.
    """
    from nas_attn import api
    from nas_attn.cli.live import TerminalEvents

    with resumable():
        predicted = api.predict_front(
            study,
            data=data,
            space=space,
            cost=cost,
            checks=checks,
            points=points,
            max_schemes=max_schemes,
            keep_first_layer=keep_first_layer,
            limits=parse_limits(limit or ()),
            second_cost=second_cost,
            distil=distil,
            scores=scores,
            improve=improve,
            metric=metric,
            overrides=set_,
            address=address,
            workers=workers,
            storage=storage,
            runs=runs,
            events=TerminalEvents(),
        )
    show_predictions(predicted, as_json=as_json)
    sys.exit(1 if checks and not predicted.findings.is_guide else 0)


def show_predictions(predicted: "PredictedFront", *, as_json: bool = False) -> None:
    """Print what was predicted, and whether it may be followed."""
    from nas_attn.cli.tables import improvements_table, predictions_table, savings_table
    from nas_attn.workflows.values import predicted_values

    if as_json:
        say_json(predicted_values(predicted))
    findings = predicted.findings
    console.print(savings_table(findings))
    say(findings.verdict)
    if findings.is_guide:
        console.print(predictions_table(findings))
    for text in (findings.bleu_text, findings.decoding_text):
        if text:
            say(text)
    if findings.improvements:
        say(findings.improvement_text)
        console.print(improvements_table(findings))
    say(f"written: {predicted.folder}")
