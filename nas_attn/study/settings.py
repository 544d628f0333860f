"""A study keeps which settings it was searched with, and is not searched on with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas_attn.engine.provenance import differences
from nas_attn.engine.store import SETTINGS, TrialStore
from nas_attn.errors import SearchError
from nas_attn.fairseq_tools.flags import without_idle


def keep_settings(store: TrialStore, settings: Mapping[str, Any]) -> None:
    """Write the settings down at the first start; later they must be the same.

    Args:
        store: Trials of the study.
        settings: Settings that trials can be compared by.

    Raises:
        SearchError: the study was started with others; names what differs.
    """
    kept = store.settings()
    if not kept:
        store.set_metadata(SETTINGS, dict(settings))
        return
    different = sorted(differences(_without_idle(kept), _without_idle(settings)))
    if different:
        raise SearchError(
            "the study on record was started with other settings, so old and new trials could "
            f"not be compared: {', '.join(different)}. Restore them, or give the study "
            "another name."
        )


def _without_idle(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without flags that earlier versions took and that change no loss."""
    training = settings.get("training", {})
    if not isinstance(training.get("arguments"), Mapping):
        return dict(settings)
    return {**settings, "training": {**training, "arguments": without_idle(training["arguments"])}}
