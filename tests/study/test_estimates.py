"""What is counted of a study before its data set is made."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from nas_attn.errors import ConfigError
from nas_attn.study.loading import load_study
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
