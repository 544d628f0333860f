"""Which seed is exported, and what its card says of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nas_attn.analysis.trials import Trials
from nas_attn.engine.trial_record import BASELINE
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.same_tokens import Check
from nas_attn.study.loading import load_study
from nas_attn.workflows.export import _written
from nas_attn.workflows.model_card import Contents, card_text
from nas_attn.workflows.model_facts import ModelFacts, choose_seed
from tests.helpers.records import OBJECTIVES, trial
from tests.helpers.studies import write

SEEDS = (1, 2, 3)
SEEDED = Trials(
    [
        trial(0, 1000, 2.0, losses=[2.1, 1.9, 2.0], **{BASELINE: True}),
        trial(1, 600, 2.2, losses=[2.6, 1.9, 2.1]),
    ],
    OBJECTIVES,
)


def test_the_seed_that_is_exported() -> None:
    chosen = SEEDED[1]

    def taken(wanted: str | int | None, *, maximise: bool = False) -> tuple[int, float | None]:
        found = choose_seed(chosen, SEEDS, wanted, maximise=maximise)
        return found.seed, found.loss

    assert taken(None) == (3, 2.1)
    assert taken("best") == (2, 1.9)
    assert taken("best", maximise=True) == (1, 2.6)
    assert taken(1) == taken("1") == (1, 2.6)
    with pytest.raises(UsageError, match="trial 1 has no seed 7; seeds: 1, 2, 3, or best"):
        taken("7")
    even = trial(2, 10, 2.0, losses=[1.9, 2.1])
    assert choose_seed(even, (4, 5), None, maximise=False).seed == 4
    assert choose_seed(trial(3, 10, 2.0), (1,), None, maximise=False).how == "its only seed"


CONFIRMED = [
    {"trial": 1, "score": "validation nll_loss", "seeds": 3, "mean": 2.3, "error": 0.01,
     "change": 0.2, "interval": 0.05},
    {"trial": 1, "score": "test bleu", "seeds": 3, "mean": 30.0, "error": 0.1,
     "change": -1.0, "interval": 0.5},
    {"trial": 0, "score": "test bleu", "seeds": 3, "mean": 31.0, "error": 0.1,
     "change": None, "interval": None},
]  # fmt: skip


@pytest.mark.parametrize("confirmed", [[], CONFIRMED])
def test_the_card_says_how_good_the_model_is_and_how_sure_that_is(
    confirmed: list[dict[str, Any]], tmp_path: Path, tiny_translation: PreparedData
) -> None:
    study = load_study(str(write(tmp_path, tiny_translation.folder)), runs=tmp_path)
    chosen = choose_seed(SEEDED[1], SEEDS, None, maximise=False)
    facts = ModelFacts.of(SEEDED[1], SEEDED, chosen, confirmed)
    contents = Contents(
        data=PreparedData(folder=tmp_path, languages=("de", "en")),
        form="fairseq", bytes=1_234_567, has_test=True,
        check=Check(same=50, count=50, what="sentences: same tokens"),
    )  # fmt: skip
    text = card_text(study, facts, contents)
    _, head, body = text.split("---\n", 2)
    assert "licence of this model is yours to choose" in head
    values = yaml.safe_load(head)
    assert (values["license"], values["language"]) == ("unknown", ["de", "en"])
    assert values["pipeline_tag"] == "translation"
    assert "0.2000 ±" in body
    assert "(95 % interval; no clear difference) for -40.0%" in body
    assert "seed 3, with 2.1000 (nearest the mean of 3 seeds); the trial's mean is 2.2000" in body
    assert "its standard error 0.2082, the noise of trials of such a score 0." in body
    assert "Size: 1.23 MB, 600 parameters." in body
    assert "50 of 50 sentences: same tokens." in body
    assert "--user-dir" not in body
    assert "TORCH\\_FORCE" in body or "TORCH_FORCE" in body
    if confirmed:
        assert values["metrics"] == ["nll_loss", "bleu"]
        assert "Confirmed by 3 fresh seeds: validation nll_loss against the baseline" in body
        assert "+0.2000 ±0.0500 (95 % interval; worse); on the test set bleu 30.0000 ±0.43" in body
    else:
        assert "Not confirmed yet: nas-attn confirm small --trial 1 does it." in body


def test_a_mismatch_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> tuple[int, Check | None]:
        (folder / "model.bin").write_text("")
        raise NasAttnError("the export does not write what the model does")

    with pytest.raises(NasAttnError, match="does not write") as raised:
        _written(tmp_path / "model", fill)
    assert type(raised.value) is NasAttnError  # exit status 1
    assert list(tmp_path.iterdir()) == []
