"""Studies and search spaces that nas-attn brings along, and files of users."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Literal

import nas_attn
from nas_attn.errors import ConfigError, ConfigIssue
from nas_attn.files import JOURNAL
from nas_attn.literals import did_you_mean
from nas_attn.yaml_file import read_yaml

ENDINGS = (".yaml", ".yml")
"""Of files of studies and search spaces."""
Shelf = Literal["studies", "search_spaces"]
WHAT = {"studies": "study", "search_spaces": "search space"}


def shipped_folder(name: str) -> Path:
    """The folder of shipped YAML files: `studies` or `search_spaces`."""
    package = Path(str(resources.files(nas_attn)))
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def shipped_names(folder: str) -> list[str]:
    """Names of the shipped files of a folder."""
    return sorted(path.stem for path in shipped_folder(folder).glob("*.yaml"))


def shipped_description(name: str) -> str:
    """What a shipped study says of itself."""
    return str(read_yaml(shipped_folder("studies") / f"{name}.yaml").get("description", ""))


def known_studies(runs: Path = Path("runs")) -> list[str]:
    """Names by which studies can be found: shipped ones, files here, run folders.

    Args:
        runs: Folder that holds run folders.
    """
    files = [str(path) for path in Path().iterdir() if path.suffix in ENDINGS]
    searched = [path.parent.name for path in runs.glob(f"*/{JOURNAL}")]
    return [*shipped_names("studies"), *sorted({*files, *searched})]


def find_file(name: str, folder: Shelf, *, known: Callable[[], list[str]] | None = None) -> Path:
    """A file by its path, a shipped one by its name, or a study by the name of its file here.

    Args:
        name: Path, or name without an ending.
        folder: Kind of file.
        known: Lists names that a mistyped one may have been meant for; the shipped ones if left
            out.

    Raises:
        ConfigError: there is no such file; proposes the most similar name.
    """
    path = Path(name)
    beside = [Path(name + ending) for ending in ENDINGS] if folder == "studies" else []
    try:
        if path.suffix in ENDINGS and path.is_file():
            return path
        for candidate in (shipped_folder(folder) / f"{name}.yaml", *beside):
            if candidate.is_file():
                return candidate
    except OSError as error:
        raise ConfigError(
            name, [ConfigIssue("(file)", f"cannot be read: {error.strerror}")]
        ) from None
    raise ConfigError(name, [ConfigIssue("(file)", _missing(name, folder, known))])


def _missing(name: str, folder: Shelf, known: Callable[[], list[str]] | None) -> str:
    what = WHAT[folder]
    offer = _offer(name, shipped_names(folder) if known is None else known())
    return f'no {what} file or shipped {what} named "{name[:100]}"{offer}'


def _offer(name: str, names: list[str]) -> str:
    """The name that a mistyped one may have been meant for; if none is similar, all."""
    return did_you_mean(name, names) or f"; there are {', '.join(names)}"


def shipped_text(name: str, folder: Shelf | None = None) -> str:
    """A shipped study or search space as its file has it.

    Args:
        name: Its name.
        folder: Kind of file; either if left out, studies first.

    Raises:
        ConfigError: there is none; proposes the most similar name.
    """
    folders: tuple[Shelf, ...] = ("studies", "search_spaces") if folder is None else (folder,)
    for kind in folders:
        if name in shipped_names(kind):
            return (shipped_folder(kind) / f"{name}.yaml").read_text(encoding="utf-8")
    names = [known for kind in folders for known in shipped_names(kind)]
    what = " or ".join(WHAT[kind] for kind in folders)
    message = f'no shipped {what} named "{name[:100]}"{_offer(name, names)}'
    raise ConfigError(name, [ConfigIssue("(name)", message)])
