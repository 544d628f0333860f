"""Studies with votes: what they need where, and what they are told to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from nas_attn.errors import ConfigError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.space import Votes
from nas_attn.study.loading import load_study
from nas_attn.trials.job import StartFolders
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
@pytest.mark.parametrize("keep", ["pillars", "threshold"])
def test_votes_that_may_leave_any_number_say_that_they_are_of_one_seeds_baseline(
    seeds: list[int],
    keep: str,
    tmp_path: Path,
    tiny_translation: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes = {**voting_space(keep), "training/seeds": seeds}
    study = load_study(str(write(tmp_path, tiny_translation.folder, changes)))
    for place, name in (
        (Session, "train_baseline"),
        (voting, "hold_on_baseline"),
        (voting, "target_of_study"),
    ):
        monkeypatch.setattr(place, name, MagicMock())
    monkeypatch.setattr(voting, "votes_of", lambda _: Votes())
    voting.with_votes(Session(study, MagicMock(), None, LogEvents()))
    said = "of other seeds (2, 3) heads of the same numbers" in caplog.text
    assert said == (len(seeds) > 1 and keep == "threshold")


def voting_space(keep: str) -> dict[str, Any]:
    return {
        "search/warm_start": "baseline",
        "space": {
            "decide": "layer",
            "schemes": {
                "multi_head": {},
                "multi_query": {},
                "grouped_head": {"keep": [keep], "num_groups": [2]},
            },
        },
    }


@pytest.mark.parametrize("keep", ["pillars", "threshold"])
def test_models_of_other_seeds_are_voted_on_themselves_where_as_many_heads_stay(
    keep: str, tmp_path: Path, tiny_translation: PreparedData
) -> None:
    changes = {**voting_space(keep), "training/seeds": [1, 2]}
    study = load_study(str(write(tmp_path, tiny_translation.folder, changes)))
    on_offer = AttentionChoice.of("grouped_head", keep=keep, num_groups=2)
    left = AttentionChoice.of("grouped_head", kept_heads=2, heads="1,3", alpha=0.0, beta=0.0)
    study = study.settled(Votes({("encoder_self.0", on_offer): left}))
    other = AttentionChoice.of("multi_query")
    plan = AttentionPlan.of(
        {"encoder_self": [left], "decoder_self": [other], "encoder_decoder": [other]}
    )
    job = study.jobs.search_trial(1, plan, StartFolders(baseline="runs/baseline"))
    first, second = [[plan_in(command) for command in (run.start, run.command)] for run in job.runs]
    assert first == [plan, plan]
    if keep == "threshold":
        assert second == [plan, plan]
        return
    assert second[0] == study.space.as_offered(plan)
    assert [str(choice) for _, (choice, *_) in second[0]].count(str(on_offer)) == 1
    assert "heads" not in dict(dict(second[1])["encoder_self"][0].options)
    sizer = study.jobs.sizer
    assert sizer.size(second[1]).total == sizer.size(plan).total == job.parameters
    cold = study.jobs.cold_trial(1, plan, StartFolders(baseline="runs/baseline"))
    assert [plan_in(run.command) for run in cold.runs] == [plan, plan], (
        "there is nothing to vote on"
    )


def plan_in(command: Sequence[str]) -> AttentionPlan:
    named = [part.removeprefix("--attention-plan=") for part in command if "attention-plan" in part]
    text = named[0] if named else command[list(command).index("--plan") + 1]
    return AttentionPlan.parse(text)
