"""What a search will train and measure, before it is started."""

from __future__ import annotations

import math

from nas_attn.study.study import Study
from nas_attn.workflows.defaults import CHECKS, LEAST_MEASURED, PART_MEASURED


def effort_text(study: Study) -> str:
    """How many trainings, measurements and fine-tunings a search comes to, in words.

    Args:
        study: Study that was checked.
    """
    search, seeds = study.search, len(study.config.training.seeds)
    each = "1 seed" if seeds == 1 else f"{seeds} seeds"
    if not search.warm_start.from_baseline:
        text = f"{search.trials} trials x {each} = {_counted(search.trials * seeds, 'training')}"
        return f"{text}, {_measured_text(study)}" if search.predicts else text
    parts = [f"{_counted(seeds, 'training')} of the baseline"]
    if search.predicts:
        parts.append(_measured_text(study))
    tuned = _counted((search.trials - 1) * seeds, "fine-tuning")
    parts.append(f"{tuned} of {_share_text(study)} of its updates")
    text = ", ".join(parts)
    scratch = search.warm_start.rank_agreement * seeds
    return f"{text}, {_counted(scratch, 'training')} from scratch to compare" if scratch else text


def _measured_text(study: Study) -> str:
    """Passes over the validation set that predictions take, about: some choices cannot inherit."""
    options = [option for unit in study.space.units for option in unit.alternatives]
    singles = sum(
        any(choice.scheme != "multi_head" for _, choice in option.choices) for option in options
    )
    scores = study.search.scores_where(distils=study.search.warm_start.distil)
    if scores == "auto":
        singles = min(singles, max(LEAST_MEASURED, math.ceil(PART_MEASURED * singles)))
    elif scores == "gradient":
        singles = 0
    return f"about {singles + CHECKS} conversions measured"


def _share_text(study: Study) -> str:
    warm = study.search.warm_start
    least, most = (f"{100 * warm.least_fraction * times:.3g}" for times in (1.0, warm.longest))
    return f"{least} %" if least == most else f"{least} to {most} %"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
