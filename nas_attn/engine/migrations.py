"""Records of earlier versions, read as if this one had written them; nothing is written anew.

What else is lacking in them has a default where it is read: attributes of trials in
`nas_attn.engine.trial_record`, starts in `nas_attn.engine.provenance`, the data set in
`nas_attn.study.same_data`, and flags that are refused now in `nas_attn.study.settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas_attn.measures import ModelSize


def size_on_record(sizes: Mapping[str, Any]) -> ModelSize:
    """Parameters of a trial; studies that began before effective ones were counted lack those."""
    return ModelSize(**{"effective": None, **sizes})


def settings_on_record(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a study; before there were other costs than parameters, objectives had two keys.

    `{"loss": ..., "parameters": KIND}` is `{"loss": ..., "costs": [KIND]}` now.
    """
    objectives = settings.get("objectives", {})
    if "parameters" not in objectives:
        return dict(settings)
    now = {"loss": objectives["loss"], "costs": [objectives["parameters"]]}
    return {**settings, "objectives": now}


def is_same(left: Any, right: Any) -> bool:
    """Whether a setting on record is one of now; older records hold numbers such as 1e-3 as words.

    Args:
        left: Setting on record.
        right: Setting of now.
    """
    if isinstance(left, str) and isinstance(right, int | float) and not isinstance(right, bool):
        try:
            return float(left) == right
        except ValueError:
            return False
    return bool(left == right)
