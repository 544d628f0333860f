"""Records of trials that were never trained."""

from __future__ import annotations

from typing import Any

import optuna

from nas_attn.engine.objectives import Objectives
from nas_attn.engine.trial_record import COSTS, TrialRecord, parse_trial

OBJECTIVES = Objectives(metric="nll_loss", maximise=False, costs=("total",), limits={})
BLEU = Objectives(metric="bleu", maximise=True, costs=("total",), limits={})


def trial(
    number: int, cost: int, loss: float, objectives: Objectives = OBJECTIVES, **attributes: Any
) -> TrialRecord:
    made = optuna.trial.create_trial(
        values=[loss, cost], user_attrs={COSTS: {"total": cost}, **attributes}
    )
    made.number = number
    return parse_trial(made, objectives)
