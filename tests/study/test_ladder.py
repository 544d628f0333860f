"""A study whose points start from larger ones: what it says, and what its trials start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas_attn.errors import ConfigError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.study.loading import load_study
from nas_attn.trials.job import StartFolders
from tests.helpers.studies import write


def test_a_trial_starts_from_its_parent(tmp_path: Path, tiny_translation: PreparedData) -> None:
    search = {"strategy": "sensitivity", "warm_start": {"source": "baseline", "ladder": True}}
    changes = {"search": search, "training/seeds": [3, 4]}
    study = load_study(str(write(tmp_path, tiny_translation.folder, changes)), runs=tmp_path)
    plan = AttentionPlan.uniform(AttentionChoice.of("collaborative", shared_dim=2))
    for parent, kept in (("trials/00002", "checkpoints"), (None, "start")):
        start = StartFolders(baseline="trials/00000", parent=parent)
        job = study.jobs.search_trial(5, plan, start)
        found = [
            f"{parent or 'trials/00000'}/seed-{seed}/{kept}/checkpoint_best.pt" for seed in (3, 4)
        ]
        assert list(job.needs) == found
        assert [run.start[:3] for run in job.runs] == [("nas-attn", "convert", f) for f in found]
        assert {run.start[4] for run in job.runs} == {plan.dumps()}
    assert study.settings()["warm_start"]["ladder"] is True
    without = study.changed(["search.warm_start.ladder=false"])
    assert "ladder" not in without.settings()["warm_start"], "records of old go on"


@pytest.mark.parametrize(
    "search",
    [
        {"warm_start": {"source": "baseline", "ladder": True}},
        {"warm_start": {"source": "baseline", "ladder": True}, "enqueue": "sensitivity"},
        {"warm_start": {"source": "nothing", "ladder": True}},
        {"warm_start": {"ladder": True}},
    ],
)
def test_it_is_for_points_of_a_predicted_front(
    search: dict[str, Any], tmp_path: Path, tiny_translation: PreparedData
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(str(write(tmp_path, tiny_translation.folder, {"search": search})))
    (fault,) = caught.value.faults
    assert fault.key == "search.warm_start.ladder"
    assert "set search.strategy to sensitivity and search.warm_start.source" in fault.message


def test_plans_may_be_fine_tuned_for_longer(tmp_path: Path, tiny_translation: PreparedData) -> None:
    warm = {"source": "baseline", "fraction": "auto"}
    changes = {"search": {"strategy": "sensitivity", "warm_start": warm}}
    study = load_study(str(write(tmp_path, tiny_translation.folder, changes)), runs=tmp_path)
    least, most = study.jobs.tuning_updates
    assert most == pytest.approx(2 * least, abs=1)
    small, large = (
        AttentionPlan.uniform(AttentionChoice.of("reduced_key", key_dim=dim)) for dim in (4, 8)
    )
    jobs = replace(study.jobs, lengthened={small: 2.0})
    start = StartFolders(baseline="trials/00000")
    for plan, updates in ((small, most), (large, least)):
        job = jobs.search_trial(1, plan, start)
        assert job.last_update == updates
        assert f"--max-update={updates}" in job.runs[0].command
        assert f"--total-num-update={updates}" in job.runs[0].command
    tenth = study.changed(["search.warm_start.fraction=0.1"])
    assert tenth.jobs.tuning_updates == (least, least)


@pytest.mark.parametrize(
    ("search", "key", "message"),
    [
        (
            {"strategy": "sampler"},
            "search.warm_start.fraction",
            "from what it is predicted to lose",
        ),
        ({"warm_start": {"rank_agreement": 12}}, "search.warm_start", "are all fine-tuned alike"),
    ],
)
def test_what_is_not_predicted_is_not_fine_tuned_for_longer(
    search: dict[str, Any], key: str, message: str, tmp_path: Path, tiny_translation: PreparedData
) -> None:
    warm = {"source": "baseline", "fraction": "auto", **search.get("warm_start", {})}
    changes = {"search": {"strategy": "sensitivity", **search, "warm_start": warm}}
    with pytest.raises(ConfigError) as caught:
        load_study(str(write(tmp_path, tiny_translation.folder, changes)))
    assert [(f.key, message in f.message) for f in caught.value.faults] == [(key, True)]
