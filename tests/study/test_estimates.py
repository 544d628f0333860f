"""What is counted of a study before its data set is made."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from nas_attn.errors import ConfigError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.study.loading import load_study
from nas_attn.workflows.effort import effort_text
from tests.helpers.cli import invoke
from tests.helpers.studies import write


def test_limits_before_the_data_set_is_made_go_by_the_vocabulary_size(tmp_path: Path) -> None:
    """A data set of enough text gets all the types that are reckoned with."""
    letters = "abcdefghijklmnopqrst"
    lines = "".join(f"{a}{b}{c}\n" for a in letters for b in letters for c in letters)
    for split, language in product(("train", "valid", "test"), ("en", "de")):
        (tmp_path / f"{split}.{language}").write_text(lines)
    text = {"folder": str(tmp_path), "languages": ["en", "de"], "vocab_size": 40}
    path = str(write(tmp_path, tmp_path / "made", {"data/text": text}))
    estimated = load_study(path).estimated()
    assert estimated is not None
    low, high = estimated.axis_range()
    refused = [f"objectives.limits={{total: {low - 1}}}"]
    with pytest.raises(ConfigError) as error:
        invoke("check", path, "--set", *refused)
    words = f"no plan of the space is under {low - 1:,}: the least is {low:,}"
    assert [(fault.key, fault.message) for fault in error.value.faults] == [
        ("objectives.limits.total", f"{words}, estimated from data.text.vocab_size 40")
    ]
    said = invoke("check", path)
    assert f"total: {low:,} to {high:,} (estimated from data.text.vocab_size 40)" in said
    study = load_study(path)
    study.prepare_data()
    assert study.axis_range() == (low, high)
    with pytest.raises(ConfigError, match=f"{words}$"):
        load_study(path, overrides=refused).check_limits()


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({}, "9 trials x 2 seeds = 18 trainings"),
        (
            {"warm_start": "baseline", "strategy": "sensitivity"},
            "2 trainings of the baseline, about 46 conversions measured, "
            "16 fine-tunings of 10 % of its updates",
        ),
        (
            {
                "warm_start": {"source": "baseline", "fraction": "auto"},
                "strategy": "sensitivity",
                "scores": "gradient",
            },
            "2 trainings of the baseline, about 40 conversions measured, "
            "16 fine-tunings of 10 to 20 % of its updates",
        ),
        (
            {"warm_start": {"source": "baseline", "fraction": 0.25}},
            "2 trainings of the baseline, 16 fine-tunings of 25 % of its updates",
        ),
    ],
)
def test_a_search_says_what_it_comes_to(
    search: dict[str, Any], words: str, tmp_path: Path, tiny_translation: PreparedData
) -> None:
    changes = {"search": {"trials": 9, **search}, "training/seeds": [1, 2]}
    assert effort_text(load_study(str(write(tmp_path, tiny_translation.folder, changes)))) == words
