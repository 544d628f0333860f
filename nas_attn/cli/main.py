"""The `nas-attn` command: its commands, its logging, and its exit statuses."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from typing import Any

import typer
from rich.logging import RichHandler

from nas_attn._deprecated import FormerNameWarning
from nas_attn.cli import bench_commands, model_commands, search_commands, study_commands
from nas_attn.cli.console import console, say_error
from nas_attn.errors import ConfigError, NasAttnError, UsageError
from nas_attn.masking import MaskingFilter, hide_typed, mask_tracebacks, replace_typed

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
FLAGS_OF_FAIRSEQ = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Of commands that hand unknown flags on."""

app.command()(search_commands.search)
app.command()(search_commands.confirm)
app.command()(search_commands.sensitivity)
app.command()(study_commands.proposals)
app.command()(study_commands.report)
app.command()(study_commands.status)
app.command()(study_commands.check)
app.command(context_settings=FLAGS_OF_FAIRSEQ)(study_commands.spaces)
app.command()(model_commands.doctor)
app.command(context_settings=FLAGS_OF_FAIRSEQ)(model_commands.count)
app.command()(model_commands.prepare)
app.command()(study_commands.repair)
app.command()(model_commands.prune)
app.command()(model_commands.convert)
app.command("plugin-dir")(model_commands.plugin_dir)
app.command()(study_commands.export)
app.command()(study_commands.compare)
bench.command("attention")(bench_commands.bench_attention)
bench.command("fairseq", context_settings=FLAGS_OF_FAIRSEQ)(bench_commands.bench_fairseq)


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
    _say_former_names()
    for noisy in ("fairseq", "ray", "matplotlib", "torch", "httpx", "optuna"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        app()
    except (ConfigError, UsageError) as error:
        say_error(error)
        sys.exit(2)
    except NasAttnError as error:
        say_error(error)
        sys.exit(1)


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
