"""Options whose text is read."""

from __future__ import annotations

import pytest
from typer.main import get_command

from nas_attn.cli.main import app
from nas_attn.cli.options import parse_limits
from nas_attn.errors import UsageError


def test_limits_are_read() -> None:
    assert parse_limits(["cache_bytes=4k", "total=1.5M", "total=20"]) == {
        "cache_bytes": 4000,
        "total": 20,
    }
    assert parse_limits([]) == {}


@pytest.mark.parametrize("text", ["", "cache_bytes", "cache=3", "total=many", "=4", "total=-1"])
def test_other_limits_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--limit.*(write NAME=NUMBER|is no amount)"):
        parse_limits([text])


OPTIONS = {
    "--set": "search confirm sensitivity check status report proposals repair export prepare",
    "--storage": "search confirm sensitivity status report proposals repair export",
    "--runs": "search confirm sensitivity check status report proposals repair export compare",
    "--workers": "search confirm sensitivity doctor",
    "--address": "search confirm sensitivity",
    "--replace": "init convert prune",
    "--json": "status check spaces compare export proposals sensitivity count",
}
"""Which commands have which options."""


@pytest.mark.parametrize("option", OPTIONS)
def test_options_are_on_every_command_that_they_suit(option: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    having = {
        name
        for name, command in commands.items()
        if any(option in parameter.opts for parameter in command.params)
    }
    assert having == set(OPTIONS[option].split())


def test_one_option_overwrites() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        for parameter in command.params:
            help_ = str(getattr(parameter, "help", "") or "")
            assert "verwrite" not in help_ or "--replace" in parameter.opts, name
