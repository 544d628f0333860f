"""Where the record is kept: any Optuna storage, or the journal file of a run folder.

Optuna opens storages itself, but not as a search of several days needs it. Its journal cannot be
read any more once a full disk has left half a line in it and the next was written behind that;
drivers that start together on a new database fall over each other's tables; and what a database
driver says of a failed connection repeats the password. So databases are opened here, with patience
and masked errors, and the journal is our own (`nas_attn.engine.journal`).

What hangs on Optuna beyond its documented interface, so that a new version of it is tried with
tests/engine before it is allowed:

- `BaseStorage`, as the store calls it. Optuna documents its methods for those who write storages;
  without them the store would go through `optuna.Study`, which writes a trial in many steps.
- `FrozenTrial._trial_id` and `FrozenStudy._study_id`, by which a storage knows what the store knows
  by number and name. Were they renamed, every command would fail at once, and nothing be lost.
- The lines of a journal, which `nas_attn.engine.journal` compares with a table of Optuna's
  operations. A kind that a later version adds would be taken for damage, and no search begin.
- `JournalStorage._sync_with_backend`, which the journal wraps only to name the line that Optuna
  cannot apply. Were it renamed, such a line would show as an error of Optuna's own.
- `optuna.storages.journal._storage.JournalStorageReplayResult`, by which `nas_attn.engine.repair`
  finds out whether Optuna can apply a line. Were it gone, `nas-attn repair` alone would not start.
"""

from __future__ import annotations

import logging
import random
import time
import warnings
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage

from nas_attn.engine.journal import LOOK_AGAIN_SECONDS, Journal
from nas_attn.engine.patience import patiently
from nas_attn.errors import SearchError, UsageError
from nas_attn.files import JOURNAL
from nas_attn.masking import mask, resolve_storage

__all__ = ["JOURNAL", "open_storage"]

logger = logging.getLogger(__name__)

OPEN_SECONDS = 10.0
"""For how long a storage is asked for the first time before its error counts."""


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Open an Optuna storage.

    Args:
        url: URL of a database (such as postgresql+psycopg://...), grpc://HOST:PORT for Optuna's
            proxy, env:NAME for an environment variable that holds one, or None for the journal file
            of a run folder.
        folder: The run folder.

    Raises:
        UsageError: there is no such variable.
        SearchError: the storage cannot be reached, the message is the database's, masked; or the
            journal was emptied, though there are trials.
    """
    # Else Optuna prints on its own account that it makes studies.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    where = folder / JOURNAL if url is None else url
    try:
        if url is None:
            folder.mkdir(parents=True, exist_ok=True)
            patiently(_check_trials_have_record, folder)
            return patiently(Journal, folder / JOURNAL)
        where = url = resolve_storage(url)
        if url.startswith("grpc://"):
            return _open_proxy(url.removeprefix("grpc://"))
        return _open_database(url)
    except (UsageError, SearchError):
        raise
    except Exception as error:  # database drivers raise their own kinds
        # What they say is part of this message; their own tracebacks repeat the password.
        raise SearchError(mask(f"cannot open the storage {where}: {error}")) from None


def _check_trials_have_record(folder: Path) -> None:
    """See that no journal begins anew unnoticed, where an earlier one was lost.

    Raises:
        SearchError: the journal was emptied, though there are trials.
    """
    trials, journal = folder / "trials", folder / JOURNAL
    if not any(trials.glob("*/*")) or not _is_blank(journal):
        return
    count = sum(1 for _ in trials.iterdir())
    known = f"{trials} holds {count} trial{'' if count == 1 else 's'}"
    if not journal.exists():
        logger.warning(
            "%s, but there is no %s: a new record begins, which takes over the trials that it "
            "proposes again; if the study is kept in another storage, stop and name it with --set "
            "execution.storage=URL",
            known,
            journal.name,
        )
        return
    time.sleep(LOOK_AGAIN_SECONDS)  # another driver may be beginning it
    if _is_blank(journal):
        raise SearchError(
            f"{known}, but {journal} is empty: their record was lost. Put a copy of it in its "
            "place; without one remove it, and the next search begins a new record, which takes "
            "over the trials that it proposes again"
        )


def _is_blank(journal: Path) -> bool:
    """Whether a journal is not there, or holds nothing but the NUL bytes of a power failure."""
    try:
        with journal.open("rb") as file:
            return not any(part.strip(b"\0\n") for part in iter(lambda: file.read(1 << 16), b""))
    except FileNotFoundError:
        return True


def _open_proxy(address: str) -> BaseStorage:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("the address of a proxy is HOST:PORT")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
    proxy.wait_server_ready(OPEN_SECONDS)
    return proxy


def _open_database(url: str) -> BaseStorage:
    from sqlalchemy.exc import DBAPIError

    # Drivers that start together all make the tables of a new database, and one succeeds.
    deadline = time.monotonic() + OPEN_SECONDS
    while True:
        try:
            return _connect(url)
        except DBAPIError:
            if time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.1, 0.5))


def _connect(url: str) -> BaseStorage:
    # A connection is tried before it is used: the server may have been started again meanwhile.
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    return optuna.storages.get_storage(storage)
