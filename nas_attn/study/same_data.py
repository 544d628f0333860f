"""A study keeps which data it was searched with, and is not searched on with others."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from nas_attn.engine.store import TrialStore
from nas_attn.errors import UsageError
from nas_attn.fairseq_tools.commands import value_of
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.folders import differences, identify

logger = logging.getLogger(__name__)

DATA = "data_set"
"""Under this name the record keeps which data these are (see `identify`)."""


def keep_data(store: TrialStore, data: PreparedData) -> None:
    """Write down at the first start which data a study is searched with; later they must be these.

    A record of old, which does not say, takes on those that are there now, if its trials were
    trained with the same languages.

    Args:
        store: Trials of the study.
        data: Data set of the study.

    Raises:
        UsageError: the study was searched with other data; names what differs.
    """
    found = identify(data.folder, data.languages)
    kept = store.metadata().get(DATA)
    if kept is not None:
        _refuse(store.name, data, differences(kept, found))
        return
    trials = store.trials()
    for trial in trials:
        trained = _trained_languages(trial.commands[0]) if trial.commands else ()
        if trained:
            as_it_was = {"languages": list(trained), "files": {}}
            _refuse(store.name, data, differences(as_it_was, found))
            break
    store.set_metadata(DATA, found)
    if trials:
        logger.info(
            "the record of %s did not say which data it was searched with; from now on it says "
            "those in %s",
            store.name,
            data.folder,
        )


def _refuse(name: str, data: PreparedData, different: Sequence[str]) -> None:
    if different:
        raise UsageError(
            f"the data set {data.folder} is not the one that the study {name!r} was searched with, "
            f"so old and new trials could not be compared: {', '.join(different)}. Restore the "
            "data, or give the study another name."
        )


def _trained_languages(command: Sequence[str]) -> tuple[str, ...]:
    """Source and target that a fairseq-train command names; none if it names none."""
    named = [value_of(command, flag) for flag in ("--source-lang", "--target-lang")]
    return tuple(name for name in named if name is not None)
