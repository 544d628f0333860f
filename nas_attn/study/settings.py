"""A study keeps which settings it was searched with, and is not searched on with others."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from nas_attn.engine.executors.gpus import seen_gpus
from nas_attn.engine.provenance import differences, listed
from nas_attn.engine.store import SETTINGS, TrialStore
from nas_attn.errors import SearchError
from nas_attn.fairseq_tools.flags import without_idle

logger = logging.getLogger(__name__)


def keep_settings(
    store: TrialStore, settings: Mapping[str, Any], *, gpus: float | None = None
) -> None:
    """Write the settings down at the first start; later they must be the same.

    Args:
        store: Trials of the study.
        settings: Settings that trials can be compared by.
        gpus: GPUs of a trial, as far as they matter to it.

    Raises:
        SearchError: the study was started with others; names what differs.
    """
    kept = store.settings()
    if not kept:
        store.set_metadata(SETTINGS, dict(settings))
        return
    if "resources" not in kept:
        if gpus == 0:
            _warn_of_hidden_gpus(store)
        settings = _without_resources(settings)
    elif "device" not in kept["resources"]:
        # Earlier versions did not keep it.
        resources = {k: v for k, v in settings.get("resources", {}).items() if k != "device"}
        settings = {**settings, "resources": resources}
    different = sorted(differences(_without_idle(kept), _without_idle(settings)))
    if different:
        raise SearchError(
            "the study on record was started with other settings, so old and new trials could "
            f"not be compared:{listed(different)}Restore them, or give the study another name "
            f"(--set name=NAME).{_other_space(different)}"
        )


def _other_space(different: Sequence[str]) -> str:
    if not any(found.startswith("space") for found in different):
        return ""
    return " Predictions for another space need neither: nas-attn sensitivity STUDY --space SPACE."


def _without_resources(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as earlier versions kept them: on how many GPUs trials train, they did not."""
    gpus = settings.get("resources", {}).get("gpus", 1)
    if gpus > 1:
        logger.warning(
            "the record is of an earlier version and does not say on how many GPUs its trials "
            "trained: if it was another number than %d, new trials have other batch sizes",
            gpus,
        )
    return {name: value for name, value in settings.items() if name != "resources"}


def _warn_of_hidden_gpus(store: TrialStore) -> None:
    """Earlier versions did not hide GPUs from trials that were given none."""
    seen = seen_gpus()
    if seen and store.trials():
        logger.warning(
            "the record is of an earlier version, with which fairseq started a process on each GPU "
            "that it saw, also where resources.gpus was 0; this process may use %d (%s), and new "
            "trials train on CPUs: if the trials on record trained on GPUs, set resources.gpus to "
            "their number, or new trials have other batch sizes",
            len(seen),
            ", ".join(seen),
        )


def _without_idle(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without flags that earlier versions took and that change no loss."""
    training = settings.get("training", {})
    if not isinstance(training.get("arguments"), Mapping):
        return dict(settings)
    return {**settings, "training": {**training, "arguments": without_idle(training["arguments"])}}
