"""Commands about models and data: try, count, prepare, prune, convert."""

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from nas_attn._deprecated import renamed_option
from nas_attn.cli.console import console, say, say_error
from nas_attn.cli.loudness import JsonOption, say_json
from nas_attn.cli.options import ReplaceOption, SetOption
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.literals import Subword
from nas_attn.machine import cpu_count, library_versions, machine_text


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
        int | None, typer.Option(min=1, help="Commands to run in parallel.", show_default="CPUs")
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
    from nas_attn.cli.tables import findings_table
    from nas_attn.fairseq_tools.self_test import MIXED, TASKS, examine

    if keep is not None and keep.exists():
        raise NasAttnError(f"{keep} exists; remove it or name another folder")
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    console.print(f"{versions}; {machine_text()}", highlight=False)
    folder = keep or Path(tempfile.mkdtemp(prefix="nas-attn-doctor-"))
    schemes = scheme or [*SCHEMES, MIXED]
    findings = list(examine(schemes, task or TASKS, folder, workers=workers or cpu_count()))
    console.print(findings_table(findings))
    faults = [finding for finding in findings if finding.fault is not None]
    for finding in faults:
        log = folder / f"{finding.scheme}-{finding.task}-{finding.step}.log"
        say_error(NasAttnError(f"{finding.scheme} {finding.task} {finding.step}: see {log}"))
    if faults:
        sys.exit(1)
    console.print(f"{len(findings)} commands, all work", highlight=False)
    if keep is None:
        shutil.rmtree(folder)


def count(
    context: typer.Context,
    arch: Annotated[
        str,
        typer.Option(
            help="Architecture of the plugin, such as collaborative_transformer_wmt_en_de, or of "
            "fairseq, such as transformer_wmt_en_de."
        ),
    ],
    vocab: Annotated[int, typer.Option(help="Source vocabulary size, special tokens included.")],
    target_vocab: Annotated[
        int | None, typer.Option(help="Target vocabulary size, if it is another one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count a model's parameters exactly, without building it in memory.

    Effective parameters are all of them less attention's dead and redundant ones, which change
    nothing that the others could not.

    Every other flag goes to fairseq, so a model is described as for fairseq-train.
    """
    from nas_attn.fairseq_tools.models import count_architecture

    try:
        size = count_architecture(arch, vocab, target_vocab, context.args)
    except ValueError as error:
        raise NasAttnError(str(error)) from None
    if as_json:
        say_json(size._asdict())
        return
    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("attention", f"{size.attention:,}")
    table.add_row("without embeddings", f"{size.non_embedding:,}")
    table.add_row("total", f"{size.total:,}")
    table.add_row("effective", f"{size.effective:,}")
    console.print(table)


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
        Path | None, typer.Option(metavar="DIR", help="Folder of the data set (for files).")
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
    """Make a binarised fairseq data set with a SentencePiece model of the training set.

    If the files are named train.LANGUAGE and valid.LANGUAGE and test.LANGUAGE lie beside them,
    those are used, and refused if they are not complete and aligned. Where there are none, evenly
    spaced lines are held out.
    """
    from nas_attn import api
    from nas_attn.cli.live import TerminalEvents
    from nas_attn.fairseq_tools.data import lines_text
    from nas_attn.workflows.models import prepare_files

    paths = [Path(name) for name in what]
    is_study = len(what) == 1 and (paths[0].suffix in (".yaml", ".yml") or not paths[0].is_file())
    if is_study:
        made = api.load(what[0], set_).prepare_data(workers=cpu_count())
    else:
        made = prepare_files(
            paths,
            out,
            vocab_size=vocab_size,
            subword=subword,
            character_coverage=character_coverage,
            valid_lines=valid_lines,
            test_lines=test_lines,
            events=TerminalEvents(),
        )
    say(f"data set: {made.folder}")
    if lines := lines_text(made.folder):
        say(f"lines: {lines}")


def prune(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint of a training with the plugin.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File of the smaller checkpoint.")],
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Vote now, on the validation set of this data set: for a training that held no "
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
    replace: ReplaceOption = False,
) -> None:
    """Cut out of a checkpoint the heads that were voted out.

    A training with the option `keep` has voted and masked, and the smaller model computes the same.
    With --calibrate any trained model is voted on now, and changes unless it is trained further.
    fairseq's commands load the result as any other checkpoint; the optimiser's state is left out.
    """
    from nas_attn.cli.tables import pruned_table
    from nas_attn.workflows.models import prune as prune_model

    given = {"keep": keep, "num_groups": num_groups, "vote_threshold": vote_threshold}
    options: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
    pruned = prune_model(
        checkpoint,
        out,
        data=calibrate,
        options=options,
        refit=refit,
        batches=batches,
        replace=replace,
    )
    console.print(pruned_table(pruned))
    say(f"plan: {pruned.plan.dumps()}")
    say(f"written: {out}")


def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Model of the plugin, or fairseq's transformer, transformer_lm or roberta.",
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
    out: Annotated[Path, typer.Option(metavar="FILE", help="File of the new checkpoint.")],
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="A binarised data set: what its training set says decides what is kept, and its "
            "validation set shows what is lost.",
        ),
    ] = None,
    refit: Annotated[
        bool, typer.Option(help="With --calibrate: solve the output projections again.")
    ] = True,
    force: Annotated[
        bool,
        typer.Option("--force", help="Allow target schemes that cannot reuse trained heads."),
    ] = False,
    mean_pool: Annotated[
        bool,
        typer.Option(
            "--mean-pool",
            help="Take means of heads for grouped_query and multi_query (Ainslie et al. 2023), "
            "which is worse: only to compare with.",
        ),
    ] = False,
    align: Annotated[
        bool,
        typer.Option(
            "--align",
            help="With --mean-pool: turn heads to each other first (Procrustes; Jin et al. 2024).",
        ),
    ] = False,
    distil: Annotated[
        bool,
        typer.Option(
            "--distil",
            help="With --calibrate: train every converted module alone, on what it is called with, "
            "to do what it did before. Then every scheme can inherit.",
        ),
    ] = False,
    means: Annotated[bool, typer.Option("--means", hidden=True)] = False,
    replace: ReplaceOption = False,
) -> None:
    """Turn a trained checkpoint into one with another attention plan.

    The new model computes the same where its plan has room for all that the heads do, else as
    nearly as it can; --calibrate says how nearly, and brings it nearer. fairseq's commands load the
    result as any other checkpoint; the optimiser's state is left out.
    """
    from nas_attn.cli.tables import converted_table
    from nas_attn.workflows.models import convert as convert_model

    mean_pool = bool(renamed_option("--means", "--mean-pool", means or None, mean_pool or None))
    if align and not mean_pool:
        raise UsageError("--align needs --mean-pool")
    found = convert_model(
        checkpoint,
        plan,
        out,
        data=calibrate,
        refit=refit,
        force=force,
        pooling=("aligned_means" if align else "means") if mean_pool else None,
        distil=distil,
        replace=replace,
    )
    console.print(converted_table(found))
    before, after = found.parameters
    console.print(f"parameters: {before:,} -> {after:,} ({after / before - 1:+.1%})")
    if found.losses is not None:
        first, second = found.losses
        console.print(
            f"validation loss, bits per token: {first:.4f} -> {second:.4f} ({second - first:+.4f})"
        )
    modules, seconds = found.distillation
    if modules:
        console.print(f"distilled: {modules} modules in {seconds:.1f} s")
    say(f"written: {out}")


def plugin_dir() -> None:
    """Print the plugin's folder, for fairseq's --user-dir."""
    from nas_attn.fairseq_tools.commands import plugin_folder

    sys.stdout.write(f"{plugin_folder()}\n")
