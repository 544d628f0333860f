"""benchmarks/record.py: what stands in the tables of a study of record."""

from __future__ import annotations

import gzip
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import sacrebleu

import nas_attn
from benchmarks.record import (
    FRESH,
    RECORD,
    bootstrap,
    curves_of,
    keep,
    open_search,
    parts_of,
    read_rows,
    rows_of,
    say_better,
    say_sites,
)
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.study.loading import load_study
from nas_attn.validation_log import REPORT_FILE
from nas_attn.workflows.confirm import confirm
from tests.helpers.paths import ROOT
from tests.helpers.studies import STUDY

WANTED = ["a small cat sat on the mat", "the dog ran far away today", "two men play in the street"]
SAID = ["a small cat sat on a mat", "the dog ran away", "two men play in a street"]
STUDIES = ROOT / "studies"
PAGE = STUDIES / "README.md"
STUDENT = 12.706
"""97.5 % of Student's distribution with one degree of freedom."""


def write_log(path: Path, said: list[str], bleu: float) -> None:
    """What fairseq-generate prints, longest sentences first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in (1, 2, 0):
        lines += [f"S-{number}\tsource", f"T-{number}\t{WANTED[number]}"]
        lines += [f"H-{number}\t-0.5\tsome pieces", f"D-{number}\t-0.5\t{said[number]}"]
    lines.append(f"Generate test with beam=5: BLEU4 = {bleu}, 50.0/40.0/30.0/20.0 (BP=1.000)")
    path.write_text("\n".join(lines))


def write_report(folder: Path) -> None:
    """One validation of a training."""
    folder.mkdir(parents=True, exist_ok=True)
    report = {"num_updates": 5, "metrics": {"nll_loss": 1.5}, "parameters": {}, "phase": None}
    (folder / REPORT_FILE).write_text(json.dumps({"time": 1.0, "epoch": 1, **report}) + "\n")


def test_the_interval_of_one_model_is_that_of_its_sentences(tmp_path: Path) -> None:
    log = tmp_path / "test.log"
    write_log(log, WANTED, 100.0)
    assert bootstrap(log) == 0.0
    write_log(log, SAID, 40.0)
    score = sacrebleu.metrics.BLEU().corpus_score(SAID, [WANTED], n_bootstrap=1000)
    assert bootstrap(log) == score._ci > 1.0


@pytest.fixture
def config(tiny_translation: PreparedData) -> dict[str, Any]:
    return {
        **STUDY,
        "name": "record",
        "data": {"folder": str(tiny_translation.folder)},
        "training": {"arguments": STUDY["training"]["arguments"], "seeds": [4, 7]},
        "space": {"decide": "site", "schemes": {"multi_head": {}, "multi_query": {}}},
        "search": {"trials": 3, "sampler": "random", "seed": 1},
        "replay": {"seconds": 3.0, "validations": 3, "noise": 0.1},
        "execution": {"executor": "simulated", "workers": 1},
    }


def test_changes_are_taken_seed_by_seed(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nas_attn.search(config, runs=tmp_path)
    study = load_study(tmp_path / "record", runs=tmp_path)
    (part,) = parts_of(study, open_search(study))
    assert part.seeds == [4, 7] and len(part.trials) == 2
    scores = {0: (30.0, 32.0), 1: (29.0, 30.5), 2: (30.5, 33.5)}
    for trial in (part.baseline, *part.trials):
        for log, bleu in zip(part.logs(trial), scores[trial.number], strict=True):
            write_log(log, SAID, bleu)

    rows = list(rows_of(study, part))
    assert [int(row["cost"]) for row in rows] == sorted(int(row["cost"]) for row in rows)
    by_trial = {int(row["trial"]): row for row in rows}
    assert by_trial[0]["test"] == "31.00" and by_trial[0]["loss_change"] == ""
    assert by_trial[1]["test_change"] == f"-1.25 ±{STUDENT * 0.25:.2f}"
    assert by_trial[2]["test_change"] == f"+1.00 ±{STUDENT * 0.5:.2f}"
    for trial in part.trials:
        own, other = trial.losses, part.baseline.losses
        changes = [mine - its for mine, its in zip(own, other, strict=True)]
        half = STUDENT * statistics.stdev(changes) / math.sqrt(2)
        mean, _, around = by_trial[trial.number]["loss_change"].partition(" ±")
        assert float(mean) == pytest.approx(statistics.fmean(changes), abs=6e-5)
        assert float(around) == pytest.approx(half, abs=6e-5)
    write_report(Path(str(part.trials[0].folder)) / "seed-7")
    (curve,) = curves_of(study, [part])
    assert curve == {
        "trained": "search", "trial": "1", "seed": "7", "stage": "", "num_updates": "5",
        "nll_loss": "1.5000",
    }  # fmt: skip
    capsys.readouterr()
    say_better(part, part)
    cheap, dear = sorted(part.trials, key=lambda trial: trial.cost or 0)
    said = capsys.readouterr().out.splitlines()[3:]
    assert said[0] == f"| {cheap.text} | {cheap.cost:,} | none |  |"
    is_better = statistics.fmean(cheap.losses) < statistics.fmean(dear.losses)
    assert said[1].startswith(f"| {dear.text} | {dear.cost:,} | ")
    assert (f"| {cheap.cost:,} | 0." in said[1]) == is_better
    share = int(by_trial[1]["cost"]) / int(by_trial[0]["cost"]) - 1
    assert by_trial[1]["share"] == f"{share:+.1%}"


def test_what_is_confirmed_without_a_search_is_kept(config: dict[str, Any], tmp_path: Path) -> None:
    study = nas_attn.Study.from_config(config, runs=tmp_path)
    plan = AttentionPlan.of({"decoder_self": AttentionChoice.of("multi_query")})
    confirm(study, seeds=2, plans=[plan])
    (part,) = parts_of(study, open_search(study))
    assert (part.name, part.seeds, part.is_searched) == (FRESH, [8, 9], False)
    (study.folder / RECORD).write_text("rows\n")
    write_report(Path(str(part.trials[0].folder)) / "seed-8")
    keep(study, [part], tmp_path / "kept")
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["curves.csv.gz", RECORD]


def test_single_changes_are_summed_by_site(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sensitivity.csv"
    lines = ["encoder_self.0,latent,0.5", "encoder_self.1,latent,0.25", "decoder_self.0,latent,1"]
    path.write_text("\n".join(["unit,choice,change", *lines, "encoder_self.1,none,0.125"]))
    say_sites(path)
    rows = capsys.readouterr().out.split("\n")[1:]
    assert rows[0] == "| in every layer of a site | encoder_self | decoder_self |"
    assert rows[2:4] == ["| none | +0.1250 |  |", "| latent | +0.7500 | +1.0000 |"]


def kept_changes(study: str, folder: Path) -> tuple[Path, dict[str, dict[str, float]]]:
    """The committed single changes of a study: unpacked into a folder, and by choice and unit."""
    path = folder / "sensitivity.csv"
    path.write_bytes(gzip.decompress((STUDIES / study / "sensitivity.csv.gz").read_bytes()))
    changes: dict[str, dict[str, float]] = {}
    for row in read_rows(path):
        changes.setdefault(row["choice"], {})[row["unit"]] = float(row["change"])
    assert len(changes) == 26
    return path, changes


@pytest.mark.parametrize("study", ["multi30k_record", "wikitext2_record"])
def test_the_table_of_sites_is_that_of_the_page(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = kept_changes(study, tmp_path)
    say_sites(path)
    assert capsys.readouterr().out.strip() in PAGE.read_text()


def test_what_is_said_of_sites_stands_in_the_single_changes(tmp_path: Path) -> None:
    _, changes = kept_changes("multi30k_record", tmp_path)
    shares = [of_site(c, "encoder_self") / of_site(c, "decoder_self") for c in changes.values()]
    assert min(shares) == pytest.approx(1 / 7, abs=0.01)
    assert max(shares) == pytest.approx(2 / 5, abs=0.01)
    largest = [worst_layer(c, "decoder_self") for c in changes.values()].count(0)
    last = [worst_layer(c, "encoder_decoder") for c in changes.values()].count(2)
    pattern = r"\((\d+) of\s26\schoices\).*?\((\d+)\sof\s26\)"
    said = re.search(pattern, PAGE.read_text(), re.DOTALL)
    assert said is not None and [int(n) for n in said.groups()] == [largest, last]


def test_the_first_layer_of_the_language_model_tolerates_least(tmp_path: Path) -> None:
    _, changes = kept_changes("wikitext2_record", tmp_path)
    for of_choice in changes.values():
        first = of_choice["decoder_self.0"]
        assert first == max(of_choice.values())
        assert first >= 2 / 5 * sum(of_choice.values())


def final_losses(study: str, folder: Path) -> dict[tuple[str, str], list[float]]:
    """What each training of the committed curves ended with, seed by seed."""
    path = folder / "curves.csv"
    path.write_bytes(gzip.decompress((STUDIES / study / "curves.csv.gz").read_bytes()))
    losses: dict[tuple[str, str], dict[str, float]] = {}
    for row in read_rows(path):
        loss = float(row["nll_loss"])
        if row["stage"] == "":
            losses.setdefault((row["trained"], row["trial"]), {})[row["seed"]] = loss
    return {key: list(of_seeds.values()) for key, of_seeds in losses.items()}


def test_no_scheme_alone_is_as_good_as_a_smaller_plan_of_the_record(tmp_path: Path) -> None:
    losses = final_losses("multi30k_record", tmp_path)
    rows = read_rows(STUDIES / "multi30k_record" / RECORD)
    searched = [row for row in rows if row["trained"] == "search"]
    alone = [row for row in rows if row["trained"] == "both" and row["loss_change"]]
    assert len(alone) == 10
    clear = 0
    for row in alone:
        smaller = (x for x in searched if int(x["cost"]) <= int(row["cost"]))
        best = min(smaller, key=lambda x: float(x["loss"]))
        own, other = losses["both", row["trial"]], losses["search", best["trial"]]
        pairs = [mine - its for mine, its in zip(own, other, strict=True)]
        less, half = statistics.fmean(pairs), 4.3027 * statistics.stdev(pairs) / math.sqrt(3)
        assert less > 0
        clear += less > half
        pattern = rf"\| {int(row['cost']):,} \| {int(best['cost']):,} \| (0\.\d+) ±(0\.\d+) \|"
        found = re.findall(pattern, PAGE.read_text())
        assert any(
            float(mean) == pytest.approx(less, abs=2e-4)
            and float(around) == pytest.approx(half, abs=4e-4)
            for mean, around in found
        )
    assert clear == 7


def of_site(changes: dict[str, float], site: str) -> float:
    return sum(change for unit, change in changes.items() if unit.startswith(f"{site}."))


def worst_layer(changes: dict[str, float], site: str) -> int:
    return max(range(3), key=lambda layer: changes[f"{site}.{layer}"])


def test_the_kept_rows_are_those_of_the_page() -> None:
    lines = PAGE.read_text().splitlines()
    kept = sorted(STUDIES.glob(f"*/{RECORD}"))
    assert [path.parent.name for path in kept] == [
        "multi30k_record",
        "multi30k_record_grouped",
        "wikitext2_record",
    ]
    names = ("share", "loss", "loss_change", "test", "test_change", "bootstrap")
    for row in (row for path in kept for row in read_rows(path)):
        cells = [row[name] for name in names if name != "bootstrap" or row[name]]
        begin = f"| {int(row['cost']):,} | {' | '.join(cells)} | "
        assert any(line.startswith(begin) for line in lines), begin
