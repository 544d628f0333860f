"""One root error and its few children; everything a user can cause derives from `NasAttnError`."""

from collections.abc import Sequence
from dataclasses import dataclass


class NasAttnError(Exception):
    """Root of all errors that nas-attn raises on purpose."""


class PlanError(NasAttnError, ValueError):
    """An attention plan, a scheme or one of its options is malformed or does not fit the model."""


class DataError(NasAttnError):
    """Text or a binarised data set is missing, misaligned or unreadable."""


class SearchError(NasAttnError):
    """A search cannot start, continue or be read."""


class UsageError(NasAttnError):
    """What a command is asked for cannot be had; the message says what to ask for instead."""


class TrialFileError(NasAttnError):
    """A file of a trial cannot be read, or is not what a training has written."""


@dataclass(frozen=True)
class ConfigIssue:
    """One thing wrong with an input file: where (`key`, a dotted path) and what."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


class ConfigError(NasAttnError):
    """A study or search-space file is refused; `faults` lists everything wrong with it."""

    def __init__(self, source: str, faults: Sequence[ConfigIssue]) -> None:
        self.source = source
        self.faults = tuple(faults)
        lines = "\n".join(f"  {fault}" for fault in self.faults)
        count = "1 error" if len(self.faults) == 1 else f"{len(self.faults)} errors"
        super().__init__(f"{source}: {count}\n{lines}")


class MissingExtraError(NasAttnError, ImportError):
    """Packages are not installed that an extra of nas-attn brings.

    Args:
        extra: Name of the extra.
        modules: Modules that are missing.
    """

    def __init__(self, extra: str, modules: Sequence[str]) -> None:
        self.extra = extra
        super().__init__(
            f"{', '.join(modules)} {'is' if len(modules) == 1 else 'are'} not installed: "
            f'pip install "nas-attn[{extra}]"',
            name=modules[0],
        )
