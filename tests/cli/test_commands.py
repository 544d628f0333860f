"""The list of commands: groups, examples, version, completion, and how much is said."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from nas_attn import __version__
from nas_attn.cli.live import TerminalEvents
from nas_attn.cli.loudness import NOISY, is_quiet, is_verbose
from nas_attn.cli.main import BENCH_COMMANDS, COMMANDS, EXIT_STATUSES, PANELS, Command, app, bench
from nas_attn.cli.options import complete_study
from nas_attn.errors import UsageError
from nas_attn.study.shipped import shipped_names
from tests.helpers.cli import invoke


def one_line(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_the_version() -> None:
    assert invoke("--version") == f"nas-attn {__version__}\n"


def test_commands_stand_in_groups() -> None:
    text = invoke("--help")
    places = [text.index(f"─ {panel} ─") for panel in PANELS]
    assert places == sorted(places)
    assert {command.panel for command in COMMANDS} <= set(PANELS)
    assert "--install-completion" in text
    assert one_line(EXIT_STATUSES) in one_line(text)


@pytest.mark.parametrize(
    ("group", "command"),
    [("", command) for command in COMMANDS] + [("bench", command) for command in BENCH_COMMANDS],
    ids=lambda value: value.name if isinstance(value, Command) else value,
)
def test_every_example_is_one(group: str, command: Command) -> None:
    words = " ".join(["nas-attn", *group.split(), command.name, command.example]).strip()
    parser = typer.main.get_command(bench if group else app).commands[command.name]
    assert parser.epilog == f"Example: {words}"
    parser.make_context(command.name, shlex.split(command.example))


def test_paragraphs_of_help_are_broken_by_the_terminal_alone() -> None:
    text = invoke("search", "--help")
    assert "sampler, and writes the report. Stop it" in one_line(text)
    assert "writes the" not in [line.strip() for line in text.splitlines()]
    assert "Example: nas-attn search demo --workers 2" in text


def test_names_of_studies_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    (tmp_path / "runs" / "former").mkdir(parents=True)
    (tmp_path / "runs" / "former" / "journal.log").write_text("")
    (tmp_path / "runs" / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert set(complete_study("")) == {*shipped_names("studies"), "mine.yaml", "former"}
    assert complete_study("mi") == ["mine.yaml"]
    assert complete_study("dem") == ["demo"]


def test_the_shell_asks_for_completions() -> None:
    asked = {"COMP_WORDS": "nas-attn rep", "COMP_CWORD": "1", "_NAS_ATTN_COMPLETE": "complete_bash"}
    done = CliRunner().invoke(app, env=asked, prog_name="nas-attn")
    assert set(done.output.split()) == {"report", "repair"}


@pytest.mark.parametrize("words", [("--quiet", "plugin-dir"), ("-q", "plugin-dir")])
def test_quiet_holds_for_one_command(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: seen.append(is_quiet()))
    CliRunner().invoke(app, words)
    assert seen == [True]
    assert not is_quiet()


def test_verbose_lets_packages_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(name: str) -> None:
        seen.append((is_verbose(), {logging.getLogger(noisy).level for noisy in NOISY}))

    monkeypatch.setattr("importlib.util.find_spec", look)
    CliRunner().invoke(app, ["--verbose", "plugin-dir"])
    assert seen == [(True, {logging.INFO})]
    assert not is_verbose()


def test_quiet_and_verbose_at_once_are_refused() -> None:
    with pytest.raises(UsageError, match="contradict each other"):
        invoke("--quiet", "search", "--verbose", "demo")


def test_quiet_events_say_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_attn.cli.live.is_quiet", lambda: True)
    TerminalEvents().on_message("so far so good")
    monkeypatch.setattr("nas_attn.cli.live.is_quiet", lambda: False)
    TerminalEvents().on_message("as always")
    assert capsys.readouterr().out == "as always\n"
