"""Commands that begin: a first study file, shipped files, and what files may say."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from nas_attn.cli.console import say
from nas_attn.cli.options import ReplaceOption
from nas_attn.errors import UsageError

Task = Literal["translation", "language_modeling", "masked_lm"]


def init(
    task: Annotated[Task | None, typer.Option(help="Task of fairseq.", show_default=False)] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Text files to make a data set from: train, valid and test, as SPLIT.LANGUAGE or "
            "SPLIT.txt, plain or .gz.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A binarised data set, as fairseq-preprocess writes it; with --text, where it is "
            "made.",
        ),
    ] = None,
    languages: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="SOURCE TARGET", help="Languages of a translation.", show_default=""),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="fairseq's name of a model size, such as iwslt_de_en or gpt2_small.",
        ),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of encoder and decoder.", show_default="2")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="Embedding dimension.", show_default="128")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads.", show_default="4")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs of a training.", show_default="4; a large model 30"),
    ] = None,
    vocab_size: Annotated[
        int, typer.Option(min=8, help="SentencePiece pieces of a data set that is made.")
    ] = 8000,
    trials: Annotated[
        int, typer.Option(min=2, help="Number of trials, the baseline included.")
    ] = 12,
    budget: Annotated[
        str | None,
        typer.Option(metavar="AMOUNT", help="The most parameters of a model, such as 20M."),
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of a trial; 0.5 shares one.")] = 0,
    name: Annotated[
        str | None, typer.Option(help="Name of the study.", show_default="name of the folder")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write.", show_default="NAME.yaml"),
    ] = None,
    replace: ReplaceOption = False,
) -> None:
    """Write a study file for your own data, with a comment at every choice.

    On a terminal it asks for task, data and languages where they are not given. The file is
    complete: check accepts it, and search runs it.
    """
    from nas_attn.study.draft import StudyDraft
    from nas_attn.workflows.init import write_study

    given = {"task": task, "text": text, "data": data, "languages": languages}
    draft = StudyDraft(
        **_asked(given),
        arch=arch,
        layers=layers,
        width=width,
        heads=heads,
        epochs=epochs,
        vocab_size=vocab_size,
        trials=trials,
        budget=budget,
        gpus=gpus,
        name=name,
    )
    path = write_study(draft, out, replace=replace)
    say(f"written: {path}; next: nas-attn check {path}, then nas-attn search {path}")


def _asked(given: dict[str, Any]) -> dict[str, Any]:
    """What a study cannot do without: as given, else asked for on a terminal.

    Raises:
        UsageError: something lacks, and there is nobody to ask.
    """
    has_data = given["text"] or given["data"]
    lacks_languages = given["task"] == "translation" and given["text"] and not given["languages"]
    lacking = [
        *([] if given["task"] else ["--task TASK"]),
        *([] if has_data else ["--text FOLDER or --data FOLDER"]),
        *(["--languages SOURCE TARGET"] if lacks_languages else []),
    ]
    if lacking and not is_asked():
        raise UsageError(f"give {' and '.join(lacking)}")
    if given["task"] is None:
        given["task"] = _choose("Task", get_args(Task))
    if not has_data:
        folder = Path(typer.prompt("Folder of text files or of a binarised data set"))
        given["data" if list(folder.glob("dict*.txt")) else "text"] = folder
    if given["task"] == "translation" and given["text"] and not given["languages"]:
        given["languages"] = (typer.prompt("Source language"), typer.prompt("Target language"))
    return given


def is_asked() -> bool:
    """Whether somebody can answer."""
    return sys.stdin.isatty()


def _choose(what: str, choices: tuple[str, ...]) -> str:
    while True:
        said: str = typer.prompt(f"{what} ({', '.join(choices)})", default=choices[0])
        if said in choices:
            return said


def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a shipped study or search space.")
    ],
) -> None:
    """Print the file of a shipped study or search space."""
    from nas_attn.study.shipped import shipped_text

    sys.stdout.write(shipped_text(name))


def schema(
    space: Annotated[
        bool, typer.Option("--space", help="Of search-space files instead of study files.")
    ] = False,
) -> None:
    """Print the JSON Schema of study files, with a description of every key.

    Editors complete and check files by it: with the YAML language server, the first line of a file
    is then "# yaml-language-server: $schema=study.schema.json".
    """
    from nas_attn.study.schema import space_schema, study_schema

    sys.stdout.write(json.dumps(space_schema() if space else study_schema(), indent=2) + "\n")
