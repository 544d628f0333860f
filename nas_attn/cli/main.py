"""The `nas-attn` command: its commands, its logging, and its exit statuses.

Exit statuses:
    0: Done; also after --help and --version.
    1: It failed, or what is there does not suffice: no search has run, a training failed, a file
        or a checkpoint is missing, `proposals --check` and `sensitivity` came to a no.
    2: Refused before anything was started: an unknown command or option, no command at all, a study
        with errors, a request that cannot be met.
    130: Interrupted by Ctrl-C or SIGTERM; the same command run again resumes.
"""

import inspect
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import typer

from nas_attn import __version__
from nas_attn._deprecated import FormerNameWarning
from nas_attn.cli import (
    bench_commands,
    model_commands,
    search_commands,
    start_commands,
    study_commands,
)
from nas_attn.cli.console import console, say_error
from nas_attn.cli.loudness import QuietOption, VerboseOption, silence_packages
from nas_attn.errors import ConfigError, NasAttnError, UsageError
from nas_attn.masking import MaskingFilter, hide_typed, mask_tracebacks, replace_typed

EXIT_STATUSES = (
    "Exit status: 0 done; 1 failed, or the answer is no; 2 refused, nothing was started; "
    "130 interrupted, run the same command again to resume."
)
app = typer.Typer(
    name="nas-attn",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Search for attention schemes that share weights among heads: give a fairseq training and "
    "a budget, get the Pareto front of loss against parameters.",
    epilog=f"Begin with: nas-attn search demo\n\n{EXIT_STATUSES}",
)
bench = typer.Typer(
    no_args_is_help=True, help="Measure how fast attention is, and how good searches are."
)
FLAGS_OF_FAIRSEQ = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Of commands that hand unknown flags on."""

THREADS = "1"
"""Of what a command computes itself, unless the user says otherwise (of trials: resources.cpus)."""

PANELS = START, RUN, LOOK, MODELS, TOOLS = "Start", "Run", "Look", "Models", "Tools"
"""Groups of commands in the help, in this order."""


class Command(NamedTuple):
    """A command of the command line.

    Args:
        name: Name that users type.
        panel: Group of commands in the help.
        function: Function that runs it.
        example: Arguments of an example.
    """

    name: str
    panel: str
    function: Callable[..., None]
    example: str


COMMANDS = (
    Command(
        "init",
        START,
        start_commands.init,
        "--task translation --text data/my_text --languages en de",
    ),
    Command("show", START, start_commands.show, "demo"),
    Command("spaces", START, study_commands.spaces, "--arch transformer_lm --decoder-layers 6"),
    Command("check", START, study_commands.check, "my_study --set search.trials=40"),
    Command("prepare", START, model_commands.prepare, "train.en train.de --out data-bin/my_data"),
    Command("search", RUN, search_commands.search, "demo --workers 2"),
    Command("confirm", RUN, search_commands.confirm, "demo --seeds 3"),
    Command(
        "sensitivity",
        RUN,
        search_commands.sensitivity,
        "checkpoint_best.pt --data data-bin/my_data --limit cache_bytes=4k",
    ),
    Command("status", LOOK, study_commands.status, "demo --watch 10"),
    Command("report", LOOK, study_commands.report, "runs/demo --out demo_report"),
    Command("compare", LOOK, study_commands.compare, "my_study runs/my_other_study"),
    Command("proposals", LOOK, study_commands.proposals, "demo --check"),
    Command("export", MODELS, study_commands.export, "my_study --best-under 20M --out small_model"),
    Command(
        "convert",
        MODELS,
        model_commands.convert,
        """checkpoint_best.pt --plan '{"decoder_self": "multi_query"}' --out shared.pt""",
    ),
    Command("prune", MODELS, model_commands.prune, "checkpoint_best.pt --out pruned.pt"),
    Command(
        "count",
        MODELS,
        model_commands.count,
        "--arch collaborative_transformer_wmt_en_de --vocab 32768 --shared-dim 128",
    ),
    Command("schema", TOOLS, start_commands.schema, "--space"),
    Command("doctor", TOOLS, model_commands.doctor, "--scheme multi_query --task translation"),
    Command("repair", TOOLS, study_commands.repair, "my_study"),
    Command("plugin-dir", TOOLS, model_commands.plugin_dir, ""),
)
BENCH_COMMANDS = (
    Command("attention", TOOLS, bench_commands.bench_attention, "--scheme multi_query"),
    Command("fairseq", TOOLS, bench_commands.bench_fairseq, "data-bin/my_data --max-tokens 1024"),
    Command("search", TOOLS, bench_commands.bench_search, "demo --sampler tpe --rule halving"),
)


def _register(group: typer.Typer, commands: Sequence[Command], prefix: str) -> None:
    for command in commands:
        takes_flags = "context" in inspect.signature(command.function).parameters
        group.command(
            command.name,
            help=_without_line_breaks(command.function),
            rich_help_panel=command.panel,
            epilog=f"Example: {prefix} {command.name} {command.example}".strip(),
            context_settings=FLAGS_OF_FAIRSEQ if takes_flags else None,
        )(command.function)


def _without_line_breaks(function: Callable[..., None]) -> str:
    """The docstring of a command, whose paragraphs a terminal breaks anew."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


_register(app, COMMANDS, "nas-attn")
_register(bench, BENCH_COMMANDS, "nas-attn bench")
app.add_typer(bench, name="bench", rich_help_panel=TOOLS)


def _say_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"nas-attn {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version."),
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Take the options that stand before a command's name."""


def main() -> None:
    """Run the command; errors become one message and an exit status (2 for refused input)."""
    _hide_passwords()
    # Before torch is imported. By default it takes all cores, which is slower on small models.
    os.environ.setdefault("OMP_NUM_THREADS", THREADS)
    mask_tracebacks()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a letter too many ends no search
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s" if console.is_terminal else "%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=[_log_handler()],
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(MaskingFilter())
    _say_former_names()
    silence_packages()
    try:
        app()
    except (ConfigError, UsageError) as error:
        say_error(error)
        sys.exit(2)
    except NasAttnError as error:
        say_error(error)
        sys.exit(1)


def _log_handler() -> logging.Handler:
    if not console.is_terminal:
        return logging.StreamHandler(sys.stdout)
    from rich.logging import RichHandler  # which imports pygments

    return RichHandler(console=console, show_path=False, markup=False, highlighter=None)


def _say_former_names() -> None:
    """Say each former name that a user gave once and in a line, without a place in our code."""
    said: set[str] = set()
    show = warnings.showwarning

    def say(message: Warning | str, category: type[Warning], *place: Any, **about: Any) -> None:
        if not issubclass(category, FormerNameWarning):
            show(message, category, *place, **about)
        elif str(message) not in said:
            said.add(str(message))
            say_error(message)

    warnings.showwarning = say


def _hide_passwords() -> None:
    """Start this process again if there is a storage's password on its command line.

    All users of a machine see command lines, and Ray keeps them.
    """
    moved = hide_typed(sys.argv, os.environ)
    words = replace_typed(sys.orig_argv, moved)
    if words == sys.orig_argv:
        return  # nothing was typed, or not as this process's own command
    say_error(
        "a password on a command line can be read by everybody on this machine, and stays in the "
        f"shell's history. It was moved to the environment variable {', '.join(moved)}: set it "
        "before, and give --storage env:NAME, or leave the password to ~/.pgpass (PGPASSFILE)"
    )
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *words[1:]], {**os.environ, **moved})


if __name__ == "__main__":
    main()
