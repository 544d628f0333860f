"""Former keys and flags are taken, and say what they are called now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nas_attn.engine.config import ExecutionConfig, ObjectivesConfig
from nas_attn.errors import ConfigError, UsageError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.study import Study
from tests.helpers.cli import invoke
from tests.helpers.paths import ROOT
from tests.helpers.studies import STUDY, write


def test_former_keys_are_taken() -> None:
    with pytest.warns(FutureWarning, match=r"objectives\.loss is called objectives\.metric now"):
        assert ObjectivesConfig.model_validate({"loss": "ppl"}).metric == "ppl"
    with pytest.warns(FutureWarning, match=r"execution\.warm is called execution\.fork_server now"):
        assert not ExecutionConfig.model_validate({"warm": False}).fork_server


def test_a_former_key_beside_the_new_one_is_refused(tiny_translation: PreparedData) -> None:
    both = {**STUDY, "objectives": {"loss": "loss", "metric": "loss"}}
    both["data"] = {"folder": str(tiny_translation.folder)}
    with pytest.raises(ConfigError, match="loss is the former name of metric: give one of them"):
        Study.from_config(both)


def test_former_flags_are_hidden() -> None:
    assert "--test-side" not in invoke("export", "--help")
    assert "--means" not in invoke("convert", "--help")


def test_a_former_flag_beside_the_new_one_is_refused() -> None:
    with pytest.raises(UsageError, match="--test-side is the former name of --test-split"):
        invoke("export", "small", "--out", "out", "--no-test-side", "--test-split")


def test_the_command_says_a_former_name_once_in_a_line_of_its_own(
    tmp_path: Path, tiny_translation: PreparedData
) -> None:
    study = write(tmp_path, tiny_translation.folder, {"objectives": {"loss": "loss"}})
    done = subprocess.run(
        [sys.executable, "-m", "nas_attn", "check", str(study)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    (said,) = [line for line in done.stderr.splitlines() if "objectives.loss" in line]
    assert said.startswith("nas-attn: the key objectives.loss is called objectives.metric now;")


def test_records_keep_the_former_name(tiny_translation: PreparedData) -> None:
    """Settings on record are compared by it, so that studies go on."""
    given = {**STUDY, "data": {"folder": str(tiny_translation.folder)}}
    given["objectives"] = {"metric": "loss"}
    assert Study.from_config(given).settings()["objectives"]["loss"] == "loss"
