"""Parts of reports: pictures of plans, figures, texts of table cells, LaTeX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nas_attn.analysis.trials import Trials
from nas_attn.attention.registry import SCHEMES
from nas_attn.plan import AttentionChoice, AttentionPlan, OptionValue, SiteShape
from nas_attn.report import summary_text
from nas_attn.report.figures import write_print_figures
from nas_attn.report.formatting import price_text, retention_text
from nas_attn.report.latex import latex_table
from nas_attn.report.pictures import (
    MIXED,
    codes_of,
    codes_text,
    label_of,
    plan_picture,
    scheme_styles,
)
from nas_attn.report.rendering import latex_text
from tests.helpers.fakes import BASELINE, OBJECTIVES
from tests.helpers.reports import context
from tests.helpers.searched import searched_trials, seeded

HALF = AttentionChoice.of("collaborative", num_value_heads=4, shared_dim=32)
QUERIES = AttentionChoice.of("grouped_query", num_groups=2)


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    return searched_trials(tmp_path / "run")


def test_every_scheme_has_a_look_of_its_own() -> None:
    styles = scheme_styles()
    assert set(styles) == {*SCHEMES, MIXED}
    colours, marks = zip(*styles.values(), strict=True)
    assert len(set(colours)) == len(set(marks)) == len(styles)


def test_black_text_can_be_read_on_every_colour() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour, _ in scheme_styles().values():
        assert (luminance(colour) + 0.05) / 0.05 > 7, "the contrast that WCAG wants at level AAA"


def test_different_choices_have_different_codes() -> None:
    def grouped(**options: OptionValue) -> AttentionChoice:
        return AttentionChoice.of("grouped_head", **options)

    choices = [
        HALF,
        AttentionChoice.of("collaborative", num_value_heads=4, shared_dim=32, content_bias=True),
        AttentionChoice.of("collaborative", num_value_heads=4, shared_dim=32, content_bias=False),
        AttentionChoice.of("collaborative", num_value_heads=32, shared_dim=4),
        grouped(num_groups=2), grouped(kept_heads=2), grouped(num_groups=2, kept_heads=2),
        grouped(num_groups=2, alpha=0.3), grouped(num_groups=2, alpha=0.5),
        grouped(num_groups=2, keep="threshold"), grouped(num_groups=2, keep="random"),
        QUERIES, *(AttentionChoice(scheme) for scheme in SCHEMES),
    ]  # fmt: skip
    shapes = {"encoder_self": SiteShape(num_layers=len(choices), embed_dim=64, num_heads=4)}
    plan = AttentionPlan.of({"encoder_self": choices})
    codes = codes_of([plan])
    ((_, cells),) = plan_picture(plan, shapes, codes)
    assert len({cell.code for cell in cells}) == len(choices)
    assert [cell.code for cell in cells][:3] == ["C32/4", "C32/4+CB", "C32/4-CB"]
    assert codes_of([AttentionPlan.uniform(choices[1])]) == {choices[1]: "C32/4"}
    # Two options with the same initials and one value are numbered.
    odd = [
        AttentionChoice.of("collaborative", a_b=1.5),
        AttentionChoice.of("collaborative", a_c=1.5),
    ]
    assert len(set(codes_of([AttentionPlan.of({"encoder_self": odd})]).values())) == 2


def test_pictures() -> None:
    plan = AttentionPlan.of(
        {"encoder_self": [HALF, QUERIES], "decoder_self": AttentionChoice("multi_head")}
    )
    shape = SiteShape(num_layers=2, embed_dim=64, num_heads=4)
    shapes = {"encoder_self": shape, "decoder_self": shape}
    codes = codes_of([plan])
    picture = dict(plan_picture(plan, shapes, codes))
    assert [cell.code for cell in picture["encoder_self"]] == ["C32/4", "GQ2"]
    assert [cell.code for cell in picture["decoder_self"]] == ["MH", "MH"]
    shares = [cell.share for cell in picture["encoder_self"]]
    # Queries and keys of half the width, and a mixing vector for each of four heads.
    collaborative = 2 * 64 * 32 + 4 * 32 + 2 * (64 * 64 + 64)
    grouped = 2 * (64 * 64 + 64) + 2 * (64 * 32 + 32)
    whole = 4 * (64 * 64 + 64)
    assert shares == pytest.approx([collaborative / whole, grouped / whole], abs=0.01)
    assert codes_text(plan, codes) == "encoder_self C32/4 GQ2; decoder_self MH"
    assert label_of(plan) == MIXED
    assert label_of(AttentionPlan.uniform(HALF)) == "collaborative"
    assert label_of(BASELINE) == "multi_head"


def test_retention_and_price(trials: Trials) -> None:
    baseline = replace(trials[0], loss=2.0, cost=1000, point=(2.0, 1000.0))
    smaller = replace(trials[1], loss=2.5, cost=800, point=(2.5, 800.0))
    rows = Trials([baseline, smaller], OBJECTIVES).front_frame().to_dict("records")
    assert [retention_text(row) for row in rows] == ["80.0%", ""]
    assert [price_text(row) for row in rows] == ["+0.2500", ""], "0.5 for two tenths"


def test_the_same_record_gives_the_same_figure(trials: Trials, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_print_figures(trials, tmp_path / name)
    for ending in ("png", "svg"):
        first, second = (
            (tmp_path / n / f"front.{ending}").read_bytes() for n in ("first", "second")
        )
        assert first == second


def test_a_score_of_zero_has_no_retention(trials: Trials) -> None:
    objectives = replace(OBJECTIVES, maximise=True)
    baseline = replace(trials[0], loss=0.0, cost=1000, point=(0.0, 1000.0))
    smaller = replace(trials[1], loss=0.0, cost=800, point=(0.0, 800.0))
    rows = Trials([baseline, smaller], objectives).front_frame().to_dict("records")
    assert [retention_text(row) for row in rows] == ["", ""]
    better = [replace(baseline, loss=20.0), replace(smaller, loss=15.0)]
    table = Trials(better, objectives).front_frame()
    assert retention_text(table.to_dict("records")[0]) == "75.0%"


def test_noise_of_zero_is_no_fault(trials: Trials, tmp_path: Path) -> None:
    """Two seeds whose losses are the same."""
    alike = [
        replace(t, losses=(t.loss, t.loss)) if t.is_trained and t.loss is not None else t
        for t in trials
    ]
    text = summary_text(Trials(alike, OBJECTIVES), context())
    assert "of such a loss): 0.0000. Spread of the loss along the front: " in text


def test_the_latex_table_marks_what_is_not_on_the_front(trials: Trials) -> None:
    worse = replace(trials[0], loss=99.0, point=(99.0, float(trials[0].cost or 0)))
    found = Trials([worse, *trials[1:]], OBJECTIVES)
    table = found.front_frame()
    assert not table[table["baseline"]]["on_front"].any()
    text = latex_table(found)
    assert "multi-head (baseline, dominated) &" in text
    assert text.count("dominated") == 1
    assert "Change of cost & loss & Change of loss" in text


def test_the_latex_table_has_true_minus_signs_and_errors(trials: Trials) -> None:
    found = Trials([seeded(trials[0], 100, 2.0, 2.2), seeded(trials[1], 80, 1.8, 2.0)], OBJECTIVES)
    text = latex_table(found)
    assert r"80 & $-20.0\%$ & 1.9000 $\pm$ 0.1000 & $-0.2000$ \\" in text


def test_latex_takes_any_text() -> None:
    assert latex_text(r"a_b & 5% {x} \y ~ ^") == (
        r"a\_b \& 5\% \{x\} \textbackslash{}y \textasciitilde{} \textasciicircum{}"
    )
