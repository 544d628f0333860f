"""Wait for a storage, or a shared folder, that has gone away and may come back."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError

from nas_attn.errors import SearchError
from nas_attn.masking import mask

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0
"""What does not answer is asked again for so long."""
PASSING = frozenset(
    {
        # A full disk may be cleared, a limit raised.
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
        # Servers of shared folders are started again.
        errno.EIO, errno.ENOLCK, errno.ESTALE, errno.EAGAIN, errno.EREMOTEIO, errno.ENOTCONN,
        errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    }
)  # fmt: skip
"""Errors of files that may pass."""

Result = TypeVar("Result")


def patiently(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call a function again until what it needs is back.

    Raises:
        SearchError: it has not answered for `PATIENCE_SECONDS`.
    """
    deadline, pause = time.monotonic() + PATIENCE_SECONDS, 0.5
    while True:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if not is_absence(error):
                raise
            if time.monotonic() > deadline:
                raise SearchError(
                    f"the storage has not answered for {PATIENCE_SECONDS:.0f} s: "
                    f"{first_line(error)}; the same command goes on when it is back"
                ) from None
            logger.warning("the storage does not answer, waiting: %s", first_line(error))
            time.sleep(pause)
            pause = min(2 * pause, 15.0)


def is_absence(error: Exception) -> bool:
    """Whether a storage may come back; drivers of databases have their own kinds of errors."""
    if isinstance(error, StorageInternalError):
        return True
    if isinstance(error, OSError) and error.errno in PASSING:
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"OperationalError", "InterfaceError", "RpcError", "ConnectionError"})


def first_line(error: Exception) -> str:
    """What an error says, in one line and without passwords."""
    # Optuna wraps what the database says in a guess of its own.
    cause = error.__cause__ or error
    return mask((str(cause).strip().splitlines() or [type(cause).__name__])[0])
