"""Studies with votes: what they need where, and what they are told to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from nas_attn.errors import ConfigError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.space import Votes
from nas_attn.study.loading import load_study
from nas_attn.workflows import votes as voting
from nas_attn.workflows.events import LogEvents
from nas_attn.workflows.session import Session
from tests.helpers.studies import write

GROUPED = {"training/arguments/criterion": "grouped_label_smoothed_cross_entropy"}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (
        {
            **GROUPED,
            "search/warm_start": "nothing",
            "space/schemes/grouped_head": {"keep": ["most_votes"], "num_groups": [2]},
            "training/arguments/vote-at-epoch": 1,
        },
        "space.schemes.grouped_head",
        "no trained model to vote on: set search.warm_start.source to baseline",
    ),
    (
        {
            "search/warm_start": "baseline",
            "space/schemes/grouped_head": {"keep": ["pillars"], "kept_heads": [2]},
        },
        "space.schemes.grouped_head",
        "leave out kept_heads and heads, or keep",
    ),
    (
        {
            "search/warm_start": "baseline",
            "space/schemes/collaborative": {"shared_dim": [8], "dim_threshold": [0.2]},
        },
        "space.schemes.collaborative",
        "prunes while it trains",
    ),
    (
        {"space": "all_schemes_grouped"},
        "space (all_schemes_grouped).schemes.grouped_head (threshold)",
        "set training.arguments.criterion to grouped_label_smoothed_cross_entropy",
    ),
    (
        {**GROUPED, "space": "all_schemes_grouped"},
        "space (all_schemes_grouped).schemes.grouped_head",
        "nothing says when: set training.arguments.vote-at-epoch or vote-at-update",
    ),
]


@pytest.mark.parametrize(("changes", "key", "message"), REFUSED, ids=[key for _, key, _ in REFUSED])
def test_studies_that_cannot_vote_are_refused(
    changes: dict[str, Any], key: str, message: str, tmp_path: Path, tiny_translation: PreparedData
) -> None:
    with pytest.raises(ConfigError) as error:
        load_study(str(write(tmp_path, tiny_translation.folder, changes)))
    assert any(f.key == key and message in f.message for f in error.value.faults), error.value


@pytest.mark.parametrize(
    "changes",
    [
        {
            "search/warm_start": "baseline",
            "space/schemes/grouped_head": {"keep": ["threshold"], "num_groups": [2]},
        },
        {"search/warm_start": "baseline", "space": "inherited_voted_per_layer"},
        {"search/warm_start": "baseline", "space": "all_schemes_grouped"},
        {**GROUPED, "training/arguments/vote-at-update": 5, "space": "all_schemes_grouped"},
    ],
)
def test_votes_on_a_trained_baseline_need_no_grouped_criterion(
    changes: dict[str, Any], tmp_path: Path, tiny_translation: PreparedData
) -> None:
    study = load_study(str(write(tmp_path, tiny_translation.folder, changes)))
    voted = [c for _, _, c in study.space.choices() if "keep" in dict(c.options)]
    assert voted


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3]])
def test_votes_say_that_they_are_of_one_seeds_baseline(
    seeds: list[int],
    tmp_path: Path,
    tiny_translation: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes = {
        "search/warm_start": "baseline",
        "space": "inherited_voted_per_layer",
        "training/seeds": seeds,
    }
    study = load_study(str(write(tmp_path, tiny_translation.folder, changes)))
    for place, name in (
        (Session, "train_baseline"),
        (voting, "hold_on_baseline"),
        (voting, "target_of_study"),
    ):
        monkeypatch.setattr(place, name, MagicMock())
    monkeypatch.setattr(voting, "votes_of", lambda _: Votes())
    voting.with_votes(Session(study, MagicMock(), None, LogEvents()))
    assert ("of other seeds (2, 3) heads of the same numbers" in caplog.text) == (len(seeds) > 1)
