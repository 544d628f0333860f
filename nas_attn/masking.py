"""Keep passwords of storages out of what is printed, logged, written, or handed to trainings."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from urllib.parse import quote, unquote

from nas_attn.errors import UsageError

MASK = "***"
VARIABLE = "NAS_ATTN_STORAGE"
"""Where a storage's URL goes that was typed with its password."""
REFERENCE = "env:"
SHORTEST = 4
"""Shorter secrets are masked where they stand in a URL only, as they may be part of any word."""

_IN_URL = re.compile(r"(?P<before>[A-Za-z0-9+.-]*://[^\s:/@'\"]*:)(?P<secret>[^\s'\"]+)@")
_AS_SETTING = re.compile(
    r"(?P<before>(?:password|passwd|pwd)\s*=\s*['\"]?)"
    r"(?P<secret>[^&\s'\"]+)",
    re.IGNORECASE,
)
_TYPED = re.compile(
    r"(?P<option>(?:--storage=|(?:--set=)?execution\.storage=)?)"
    r"(?P<url>[A-Za-z][A-Za-z0-9+.-]*://.*)"
)
_known: set[str] = set()


def mask(text: str) -> str:
    """A text without the passwords of its URLs, and without those of `remember`."""
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    text = _IN_URL.sub(rf"\g<before>{MASK}@", text)
    return _AS_SETTING.sub(rf"\g<before>{MASK}", text)


def remember(url: str) -> None:
    """Mask the passwords of a URL from now on wherever they stand, as drivers may repeat them."""
    found = [match["secret"] for match in _IN_URL.finditer(url)]
    found += [match["secret"] for match in _AS_SETTING.finditer(url)]
    for secret in [secret for secret in found if secret != MASK]:
        # A password with an @ that is not escaped is cut there, and the rest taken for the host.
        parts = {secret, *secret.split("@")}
        parts |= {unquote(part) for part in parts}
        parts |= {quote(part, safe="") for part in parts}
        _known.update(part for part in parts if len(part) >= SHORTEST)


def resolve_storage(url: str) -> str:
    """The URL of a storage, of which `env:NAME` names the environment variable that holds it.

    Raises:
        UsageError: there is no such variable.
    """
    if url.startswith(REFERENCE):
        name = url.removeprefix(REFERENCE)
        url = os.environ.get(name, "")
        if not url:
            raise UsageError(
                f"the storage is env:{name}, but there is no environment variable {name} that "
                "holds its URL"
            )
        _secret_variables.add(name)
    remember(url)
    return url


_secret_variables = {"PGPASSWORD"}


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """What a training may know of an environment: not the storage, which is the driver's alone."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _secret_variables and not name.startswith(VARIABLE)
    }


@contextlib.contextmanager
def environment_without_secrets() -> Iterator[None]:
    """Start processes that inherit this one's environment without the storage."""
    whole = dict(os.environ)
    kept = without_secrets(whole)
    for name in whole.keys() - kept.keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update({name: whole[name] for name in whole.keys() - kept.keys()})


def hide_typed(words: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Move storages with passwords from a command line, which all users see, to variables.

    Args:
        words: Words of the command; changed words are found by `replace_typed`.
        environment: Environment as it is.

    Returns:
        The URL by the name of its new variable; empty if no password was typed.
    """
    moved: dict[str, str] = {}
    for word in words:
        match = _TYPED.fullmatch(word)
        if match is None or mask(match["url"]) == match["url"] or match["url"] in moved.values():
            continue
        names = [VARIABLE, *(f"{VARIABLE}_{number}" for number in range(2, 100))]
        free = (n for n in names if n not in moved and environment.get(n) in (None, match["url"]))
        moved[next(free)] = match["url"]
    return moved


def replace_typed(words: Sequence[str], moved: Mapping[str, str]) -> list[str]:
    """A command line with variables in place of the storages that `hide_typed` moved."""
    names = {url: name for name, url in moved.items()}
    replaced = []
    for word in words:
        match = _TYPED.fullmatch(word)
        is_moved = match is not None and match["url"] in names
        replaced.append(
            f"{match['option']}{REFERENCE}{names[match['url']]}" if match and is_moved else word
        )
    return replaced


class MaskingFilter(logging.Filter):
    """Masks what a handler writes, with its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = mask(record.getMessage()), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = mask(record.exc_text)
        return True


def mask_tracebacks() -> None:
    """Mask the tracebacks with which Python ends, of this process and its threads."""

    def write(
        kind: type[BaseException], error: BaseException | None, where: TracebackType | None
    ) -> None:
        sys.stderr.write(mask("".join(traceback.format_exception(kind, error, where))))

    def write_thread(ended: threading.ExceptHookArgs) -> None:
        if ended.exc_type is not SystemExit:
            write(ended.exc_type, ended.exc_value, ended.exc_traceback)

    sys.excepthook = write
    threading.excepthook = write_thread
