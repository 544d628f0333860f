"""Studies and search spaces that nas-attn brings along, and files of users."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import nas_attn
from nas_attn.errors import ConfigError, ConfigIssue
from nas_attn.yaml_file import read_yaml


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


def find_file(name: str, folder: str) -> Path:
    """A file by its path, or a shipped one by its name.

    Raises:
        ConfigError: there is neither.
    """
    path = Path(name)
    shipped = shipped_folder(folder) / f"{name}.yaml"
    try:
        if path.suffix in (".yaml", ".yml") and path.is_file():
            return path
        if shipped.is_file():
            return shipped
    except OSError as error:
        raise ConfigError(
            name, [ConfigIssue("(file)", f"cannot be read: {error.strerror}")]
        ) from None
    offer = ", ".join(shipped_names(folder))
    message = f"no such file, and no shipped one of that name; shipped are {offer}"
    raise ConfigError(name, [ConfigIssue("(file)", message)])
