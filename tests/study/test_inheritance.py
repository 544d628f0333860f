"""What a study does with schemes that inherit only where converted modules are trained alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.study.loading import load_study
from nas_attn.study.sensitivity import target_of_study
from nas_attn.trials.job import StartFolders
from tests.helpers.studies import write


def test_with_distillation_every_scheme_starts_warm(
    tmp_path: Path, tiny_translation: PreparedData
) -> None:
    sites = ("encoder_self", "decoder_self", "encoder_decoder")
    plan = AttentionPlan.uniform(AttentionChoice.of("head_embedding_add"), sites)
    path = str(
        write(tmp_path, tiny_translation.folder, {"search/warm_start": {"source": "baseline"}})
    )
    for distil in (False, True):
        study = load_study(path, overrides=[f"search.warm_start.distil={str(distil).lower()}"])
        # Records of earlier versions do not hold it.
        assert study.settings()["warm_start"].get("distil", False) is distil
        assert ("distil" in study.settings()["warm_start"]) is distil
        start = (
            study.jobs.search_trial(1, plan, StartFolders(baseline="runs/baseline")).runs[0].start
        )
        assert start[0] == ("nas-attn" if distil else "fairseq-train")
        assert ("--distil" in start) is distil
        target = target_of_study(study, None)
        assert target.inherits(plan) is distil
        measured = replace(target, checkpoint=Path("best.pt")).build_measurement(
            1, plan, target.measurements / "calibration.pt"
        )
        assert ("--distil" in measured.runs[0].command) is distil
        name = "sensitivity-distilled" if distil else "sensitivity"
        assert Path(measured.folder).parent == study.folder / name / "trials"
        assert target.is_start
    other = target_of_study(load_study(path), None, distil=True)
    assert other.inherits(plan)
    assert not other.is_start, "warm trials of that study start from plain conversions"
