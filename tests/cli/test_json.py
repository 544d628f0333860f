"""`--json` prints one object to standard output, and nothing else."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from nas_attn import api
from nas_attn.cli.console import console
from nas_attn.cli.loudness import say_json
from nas_attn.cli.main import app
from nas_attn.engine.store import SETTINGS
from nas_attn.errors import UsageError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.same_tokens import Check
from nas_attn.study.shipped import shipped_names
from nas_attn.workflows.export import Exported
from nas_attn.workflows.model_facts import ModelFacts, choose_seed
from nas_attn.workflows.sensitivity import PredictedFront
from tests.helpers.cli import invoke
from tests.helpers.fakes import BASELINE, FakeExecutor, make_loop
from tests.helpers.predicted import findings
from tests.helpers.studies import write


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of two searches, of whose trials some have failed."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("first", "second"):
        loop = make_loop(folder / name, trials=8)
        FakeExecutor(error=lambda job: "no room" if job.number == 3 else None).run(loop)
        settings = {"objectives": {"loss": "loss", "costs": ["total"]}}
        loop.store.set_metadata(SETTINGS, settings)
    return folder


def printed(*arguments: str) -> dict[str, Any]:
    """What a command prints, which must be one object in one line."""
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    (line,) = done.stdout.splitlines()
    values = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(values, dict)
    return values


def test_status(runs: Path) -> None:
    values = printed("status", "first", "--runs", str(runs))
    counts = values["trials"]
    assert counts["finished"] + counts["failed"] == counts["wanted"] == 8
    assert (counts["failed"], counts["running"]) == (1, 0)
    assert values["failed"][0]["trial"] == 3 and "no room" in values["failed"][0]["reason"]
    assert values["baseline"]["baseline"] and values["baseline"]["trial"] == 0
    assert values["front"] and all(set(row["costs"]) >= {"total"} for row in values["front"])
    with pytest.raises(UsageError, match="leave --watch out"):
        printed("status", "first", "--runs", str(runs), "--watch", "3")


def test_proposals(runs: Path) -> None:
    rows = printed("proposals", str(runs / "first"))["proposals"]
    assert [row["trial"] for row in rows] == list(range(len(rows)))
    assert all(row["plan"] for row in rows)


def test_compare(runs: Path, tmp_path: Path) -> None:
    values = printed(
        "compare", "first", "second", "--runs", str(runs), "--out", str(tmp_path / "o")
    )
    assert [row["study"] for row in values["studies"]] == ["first", "second"]
    assert values["studies"][1]["ratio"] == pytest.approx(1.0)
    assert values["reference"]["cost"] > 0


def test_check(tmp_path: Path, tiny_translation: PreparedData) -> None:
    path = str(write(tmp_path, tiny_translation.folder))
    values = printed("check", path)
    assert (values["name"], values["plans"], values["trials"], values["seeds"]) == (
        "small", 27, 3, 1,
    )  # fmt: skip
    assert 0 < values["least"] < values["most"]
    text = {"folder": str(tmp_path), "languages": ["en", "de"]}
    for split in ("train", "valid", "test"):
        for language in text["languages"]:
            (tmp_path / f"{split}.{language}").write_text("some words\n")
    path = str(write(tmp_path, tmp_path / "new", {"data/text": text | {"subword": "char"}}))
    assert printed("check", path)["least"] is None
    assert "limits are checked once the data set is there" in invoke("check", path)


def test_spaces() -> None:
    values = printed("spaces", "--arch", "multi_head_transformer_lm", "--decoder-embed-dim=24")
    assert [space["name"] for space in values["spaces"]] == shipped_names("search_spaces")
    assert [study["name"] for study in values["studies"]] == shipped_names("studies")


def test_export(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is tested elsewhere; here nothing is trained that could be."""

    def export(results: api.Results, out: Path, *, trial: int, **_: object) -> Exported:
        trials = results.read()
        chosen = choose_seed(trials[trial], (1,), None, maximise=False)
        return Exported(
            folder=out,
            plan=BASELINE,
            form="fairseq",
            bytes=1234,
            test_bytes=56,
            check=Check(same=49, count=50, what="sentences"),
            facts=ModelFacts.of(trials[trial], trials, chosen),
        )

    monkeypatch.setattr(api.Results, "export", export)
    values = printed("export", "first", "--runs", str(runs), "--trial", "1", "--out", str(tmp_path))
    assert (values["trial"], values["baseline"], values["format"]) == (1, False, "fairseq")
    assert "; the baseline has " in values["comparison"]
    assert values["seed"]["seed"] == 1
    assert values["plan"] == BASELINE.to_json()
    assert (values["model_bytes"], values["test_bytes"]) == (1234, 56)
    assert values["check"] == {"same": 49, "count": 50, "what": "sentences"}
    assert values["confirmed"] is None
    assert values["folder"] == str(tmp_path)


def test_sensitivity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(outcomes=0)
    made = PredictedFront(findings=found, folder=tmp_path)
    given: dict[str, Any] = {}
    monkeypatch.setattr(api, "predict_front", lambda *_, **options: given.update(options) or made)
    values = printed("sensitivity", "first", "--storage", "grpc://host:1")
    assert given["storage"] == "grpc://host:1"
    assert (values["study"], values["cost"], values["baseline_cost"]) == (
        "study",
        "attention",
        1000,
    )
    assert values["is_guide"] is found.is_guide is True
    assert [row["cost"] for row in values["front"]] == [900]
    assert values["folder"] == str(tmp_path)


def test_what_is_said_meanwhile_goes_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    def status(*_: object) -> None:
        console.print("meanwhile")
        logging.getLogger("nas_attn").warning("logged")

    def log(context: typer.Context) -> None:
        monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stdout)])

    monkeypatch.setattr("nas_attn.api.Results.status", status)
    monkeypatch.setattr("nas_attn.workflows.values.status_values", lambda *_: {"a": 1})
    outer = typer.Typer(callback=log)
    outer.add_typer(app, name="nas-attn")
    words = ["nas-attn", "status", "first", "--runs", str(runs), "--json"]
    done = CliRunner().invoke(outer, words, catch_exceptions=False)
    assert done.stdout == '{"a": 1}\n'
    assert done.stderr == "meanwhile\nlogged\n"
    assert not console.stderr, "it holds for one command"


def test_numbers_that_json_has_not_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("d"), "e": (1, "ü")})
    assert capsys.readouterr().out == '{"a": null, "b": [null, 1.5], "c": "d", "e": [1, "ü"]}\n'
