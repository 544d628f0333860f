"""Programs of trials are run by this Python."""

from __future__ import annotations

import sys

import pytest

from nas_attn.errors import NasAttnError
from nas_attn.trials.processes.programs import executable_form, needs_fairseq


@pytest.mark.parametrize(
    ("name", "module", "with_fairseq"),
    [
        ("fairseq-train", "fairseq_cli.train", True),
        ("fairseq-generate", "fairseq_cli.generate", True),
        ("fairseq-eval-lm", "fairseq_cli.eval_lm", True),
        ("fairseq-validate", "fairseq_cli.validate", True),
        ("nas-attn", "nas_attn.cli.main", True),
        ("nas-attn-measure", "nas_attn.fairseq_tools.measure", True),
        ("nas-attn-replay", "nas_attn.simulation.command", False),
    ],
)
def test_commands_are_run_by_this_python(name: str, module: str, with_fairseq: bool) -> None:
    assert executable_form((name, "data")) == [sys.executable, "-m", module, "data"]
    assert needs_fairseq((name, "data")) == with_fairseq


def test_unknown_commands() -> None:
    with pytest.raises(NasAttnError, match="cannot run 'rm'; there are fairseq-train"):
        executable_form(("rm", "-rf"))
    with pytest.raises(NasAttnError, match="cannot run 'pip'"):
        executable_form(("pip", "list"))
