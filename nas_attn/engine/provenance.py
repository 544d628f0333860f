"""What a search was run with: versions and machines of every start, and what proposals hang on."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from nas_attn.engine.migrations import is_same
from nas_attn.engine.store import TrialStore
from nas_attn.errors import SearchError

VERSIONS, MACHINE = "versions", "machine"
"""Under these names the record keeps those of the first start; old records, of the last one."""
START = "start "
"""How the names begin under which the record keeps every start."""
PROPOSING = "proposing"
"""Under this name the record keeps the settings that proposals hang on."""


def note_start(store: TrialStore, versions: Mapping[str, str], machine: str) -> None:
    """Keep what a search is run with, unless its last start was run with the same.

    Args:
        store: Trials of the search.
        versions: Versions of the libraries, by name.
        machine: Machine in words.
    """
    starts = starts_of(store.metadata())
    now = {VERSIONS: dict(versions), MACHINE: machine}
    if starts and {name: starts[-1].get(name) for name in now} == now:
        return
    if not starts:
        store.set_metadata(VERSIONS, dict(versions))
        store.set_metadata(MACHINE, machine)
    # Neither time nor process would do: starts can share a tick of the clock, containers a number.
    store.set_metadata(f"{START}{uuid.uuid4().hex}", {"at": time.time(), **now})


def starts_of(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a search was run with, from its first start on."""
    starts = [start for name, start in metadata.items() if name.startswith(START)]
    starts.sort(key=lambda start: start["at"])
    old = {name: metadata[name] for name in (VERSIONS, MACHINE) if name in metadata}
    is_old = old and not any(all(s[name] == old[name] for name in old) for s in starts)
    return [{"at": 0.0, VERSIONS: {}, MACHINE: "", **old}, *starts] if is_old else starts


def versions_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The versions of every library, one after the other if they changed."""
    starts = starts_of(metadata)
    names = dict.fromkeys(name for start in starts for name in start[VERSIONS])
    return {
        name: _one_after_another([start[VERSIONS].get(name, "") for start in starts])
        for name in names
    }


def machine_of(metadata: Mapping[str, Any]) -> str:
    """The machine of a search, or several."""
    return _one_after_another([start[MACHINE] for start in starts_of(metadata)])


def _one_after_another(words: list[str]) -> str:
    return ", then ".join(dict.fromkeys(word for word in words if word))


def proposing_of(store: TrialStore) -> dict[str, Any] | None:
    """The settings that proposals on record hang on; None if there is no such record."""
    return store.metadata().get(PROPOSING) if store.trials() else None


def check_proposing(store: TrialStore, proposing: Mapping[str, Any]) -> None:
    """See that proposals hang on what they hung on before; records of old do not say on what.

    Args:
        store: Trials of the search.
        proposing: The settings that they hang on, by key path.

    Raises:
        SearchError: something differs; says what.
    """
    kept = proposing_of(store)
    different = sorted(differences(kept, proposing)) if kept else []
    if different:
        raise SearchError(
            "the trials on record were proposed with other settings, on which all further ones "
            f"hang:{listed(different)}Restore them, or give the study another name "
            "(--set name=NAME)."
        )


def keep_proposing(store: TrialStore, proposing: Mapping[str, Any]) -> None:
    """Write down what proposals hang on, at the first start; later it must be the same.

    Raises:
        SearchError: something differs; says what.
    """
    check_proposing(store, proposing)
    if store.metadata().get(PROPOSING) != proposing:
        store.set_metadata(PROPOSING, dict(proposing))


def differences(left: Any, right: Any, key: str = "") -> list[str]:
    """What differs between settings on record and those of now, by key path, in words."""
    if isinstance(left, dict) and isinstance(right, Mapping):
        return [
            found
            for name in {*left, *right}
            for found in differences(
                left.get(name), right.get(name), f"{key}.{name}" if key else name
            )
        ]
    return [] if is_same(left, right) else [f"{key} ({left!r}, now {right!r})"]


def listed(found: Sequence[str]) -> str:
    """Differences within a message: a single one in its line, several in a line each."""
    return f" {found[0]}. " if len(found) == 1 else "".join(f"\n  {one}" for one in found) + "\n"
