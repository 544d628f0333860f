"""Which driver runs which trial, when several work on one study.

A driver holds a locked file and beats: it counts up an attribute of the study. On its own machine
it has died when its file is no longer locked, which shows at once; on another one when the count
has not changed for the time of grace. Trials of the dead are claimed in the storage, whose order
decides.

Optuna has a heartbeat too, and it does not do here. It is for databases only, so neither the
journal of a run folder nor a proxy has it. It waits for the whole time of grace even where a lock
shows at once that a process is gone. And it closes the trial of a dead process as failed, where a
training is to go on from its last checkpoint, under the same number.

What this needs of Optuna holds for every storage: attributes of studies, and one order of the
trials of a study that all processes see, as a claim is a trial of a study beside
(`TrialStore.claim`). Were that order given up, two drivers could each believe that a trial is
theirs.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from nas_attn.engine.locks import machine
from nas_attn.engine.patience import first_line, patiently
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.trials.processes.holders import is_stopped

logger = logging.getLogger(__name__)

PREFIX = "driver "
SAY_SECONDS = 60.0
"""How often it is said that a stopped driver keeps its trials."""


class TrialLeases:
    """One driver among those of a study.

    Args:
        store: Trials of the study.
        folder: The run folder, for the locked file.
        heartbeat_seconds: Seconds between two heartbeats.
        grace_seconds: Seconds that a driver on another machine may be silent.
    """

    def __init__(
        self, store: TrialStore, folder: Path, *, heartbeat_seconds: float, grace_seconds: float
    ) -> None:
        self.store = store
        self.heartbeat_seconds = heartbeat_seconds
        self.grace_seconds = grace_seconds
        self.driver = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._path = folder / "drivers" / f"{self.driver}.lock"
        self._file = patiently(_hold, self._path)
        self._beats = 0
        self._say_at = 0.0
        self._heard: dict[str, tuple[int, float]] = {}
        self._beat()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Say that this driver ends."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(Exception):
            self._beat(ended=True)
        with contextlib.suppress(OSError):  # a shared folder that is away; it may stay
            self._path.unlink()
        self._file.close()

    def owner(self, trial: TrialRecord) -> str | None:
        """The driver that runs a trial, or ran it last."""
        return owner_of(trial, self.store.claims())

    def owns(self, trial: TrialRecord) -> bool:
        """Whether this driver runs a trial, and no other has taken it over."""
        return self.owner(trial) == self.driver

    def claim_abandoned(self, trials: list[TrialRecord]) -> list[TrialRecord]:
        """Take over those trials whose driver has died.

        Args:
            trials: Trials that are not over.

        Returns:
            Those that are this driver's now, and were not before.
        """
        alive, claims = self._alive(), self.store.claims()
        self._say_who_is_stopped(trials, claims)
        abandoned = [trial for trial in trials if owner_of(trial, claims) not in alive]
        for trial in abandoned:
            generation = sum(claim["trial"] == trial.number for claim in claims)
            self.store.claim(
                {"trial": trial.number, "generation": generation, "driver": self.driver}
            )
        claims = self.store.claims() if abandoned else claims
        return [trial for trial in abandoned if owner_of(trial, claims) == self.driver]

    def _say_who_is_stopped(
        self, trials: Sequence[TrialRecord], claims: Sequence[Mapping[str, Any]]
    ) -> None:
        """A stopped driver lives, so its trials are waited for, and that may be for ever."""
        if time.monotonic() < self._say_at:
            return
        known = _drivers(self.store.metadata())
        for driver in sorted({owner_of(trial, claims) or "" for trial in trials} - {self.driver}):
            pid = _pid(driver)
            if known.get(driver, {}).get("machine") == machine() and is_stopped(pid):
                self._say_at = time.monotonic() + SAY_SECONDS
                held = [str(t.number) for t in trials if owner_of(t, claims) == driver]
                logger.warning(
                    "trials %s wait for the driver %s, which is stopped: kill -CONT %d lets it go "
                    "on, kill -9 %d leaves its trials to others",
                    ", ".join(held),
                    driver,
                    pid,
                    pid,
                )

    def _alive(self) -> set[str]:
        drivers = _drivers(self.store.metadata())
        alive = {driver for driver, entry in drivers.items() if self._is_alive(driver, entry)}
        return alive | {self.driver}

    def _is_alive(self, driver: str, entry: dict[str, Any]) -> bool:
        if entry["ended"]:
            return False
        is_held = _is_held(Path(entry["lock"])) if entry["machine"] == machine() else None
        if is_held is not None:
            return is_held
        beats, since = self._heard.get(driver, (-1, 0.0))
        if entry["beats"] != beats:
            self._heard[driver] = (entry["beats"], time.monotonic())
            return True
        return time.monotonic() - since < self.grace_seconds

    def _keep_beating(self) -> None:
        while not self._over.wait(self.heartbeat_seconds):
            try:
                self._beat()
            except Exception as error:  # a storage that is away; trials are finished meanwhile
                logger.warning("this driver could not report that it lives: %s", first_line(error))

    def _beat(self, *, ended: bool = False) -> None:
        self._beats += 1
        self.store.set_metadata(
            PREFIX + self.driver,
            {
                "beats": self._beats,
                # Only for people: what drivers do hangs on no clock.
                "at": time.time(),
                "machine": machine(),
                "lock": str(self._path.absolute()),
                "ended": ended,
            },
        )


def owner_of(trial: TrialRecord, claims: Sequence[Mapping[str, Any]]) -> str | None:
    """The driver that runs a trial, or ran it last.

    Args:
        trial: Trial that may have been claimed.
        claims: Claims of the store.
    """
    # Of several claims of one generation the first holds; the others were too late.
    owner, generation = trial.driver, -1
    for claim in claims:
        if claim["trial"] == trial.number and claim["generation"] > generation:
            owner, generation = claim["driver"], claim["generation"]
    return owner


def live_drivers(metadata: Mapping[str, Any], *, now: float, grace_seconds: float) -> list[str]:
    """Names of the drivers that live, as one sees it who looks once.

    So of other machines their clocks are believed.

    Args:
        metadata: Metadata of the study.
        now: Time, in seconds since 1970.
        grace_seconds: Seconds that a driver on another machine may be silent.
    """
    alive = []
    for driver, entry in _drivers(metadata).items():
        if entry["ended"]:
            continue
        is_held = _is_held(Path(entry["lock"])) if entry["machine"] == machine() else None
        if is_held or (is_held is None and now - entry.get("at", 0.0) < grace_seconds):
            alive.append(driver)
    return alive


def held_drivers(folder: Path) -> list[str]:
    """Names of the drivers of this machine that live, by the locks of a run folder alone."""
    paths = sorted((folder / "drivers").glob("*.lock"))
    return [path.stem for path in paths if _is_held(path)]


def _drivers(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What every driver reported last, by its name."""
    return {k.removeprefix(PREFIX): v for k, v in metadata.items() if k.startswith(PREFIX)}


def _pid(driver: str) -> int:
    """The process of a driver, from its name; 0 if that says none."""
    parts = driver.rsplit("-", 2)
    return int(parts[1]) if len(parts) == 3 and parts[1].isdigit() else 0


def _hold(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        file.close()
        raise
    return file


def _is_held(path: Path) -> bool | None:
    """Whether a living process holds the lock of a file; None if that cannot be seen."""
    try:
        with path.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False
