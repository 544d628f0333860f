"""A study as its file has it: of the right form, and not judged against fairseq and its model yet.

That is enough to find a study's record and to read it, and asks neither fairseq nor torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nas_attn.config_model import faults_of
from nas_attn.engine.config import ExecutionConfig
from nas_attn.engine.objectives import Objectives
from nas_attn.errors import ConfigError
from nas_attn.masking import mask
from nas_attn.measures import maximises
from nas_attn.study.config import StudyConfig
from nas_attn.study.recorded import is_run_folder, open_run_folder, recorded_tree
from nas_attn.study.shipped import find_file, known_studies
from nas_attn.study.tree import Overrides, overridden, override_texts, relative_to, tree_of
from nas_attn.yaml_file import read_yaml

NO_FILE = "(study)"
"""Names a study without a file in messages."""
RUNS = Path("runs")
"""Folder of the studies' run folders, unless another one is named."""


@dataclass(frozen=True, kw_only=True)
class StudyForm:
    """What a study's file says.

    Args:
        config: Configuration that its file holds.
        runs: Folder that holds the run folders of all studies.
        typed: Arguments by which a command finds the study again; none if it is no file's.
        source: Name that messages give.
        run_folder: Its run folder, if that is not NAME in `runs`.
    """

    config: StudyConfig
    runs: Path
    typed: tuple[str, ...] = ()
    source: str = NO_FILE
    run_folder: Path | None = None

    @property
    def name(self) -> str:
        """Its name in the storage."""
        return self.config.name

    @property
    def reading(self) -> tuple[str, ...]:
        """Arguments by which a command that trains nothing finds the study: how trials run is left
        out, where the record is stays."""
        kept: list[str] = []
        for word in self.typed:
            is_running = word.startswith("execution.") and not word.startswith("execution.storage=")
            if kept and kept[-1] == "--set" and is_running:
                kept.pop()
            else:
                kept.append(word)
        return tuple(kept)

    @property
    def folder(self) -> Path:
        """The study's run folder."""
        return self.run_folder or (self.runs / self.name).absolute()

    @property
    def execution(self) -> ExecutionConfig:
        """Where and how trials run."""
        return self.config.execution

    @property
    def objectives(self) -> Objectives:
        """What is weighed."""
        config = self.config.objectives
        return Objectives.of(config, maximise=maximises(config.metric))

    def with_values(self, overrides: Overrides = (), *, runs: Path | None = None) -> StudyForm:
        """The study with other values, of the right form again.

        Args:
            overrides: Values that replace others.
            runs: Folder for run folders; the study's own if left out.

        Raises:
            ConfigError: it is not of the form of a study; lists every fault.
        """
        tree = tree_of(self.config, NO_FILE)
        texts = override_texts(overrides, tree)
        config = parse_config(overridden(tree, overrides), NO_FILE)
        typed = self.typed
        if typed:
            typed += typed_overrides(texts) + (() if runs is None else ("--runs", str(runs)))
        if runs is not None:
            return StudyForm(config=config, runs=runs.absolute(), typed=typed)
        run_folder = self.run_folder if config.name == self.name else None
        return StudyForm(config=config, runs=self.runs, typed=typed, run_folder=run_folder)


Runs = str | Path | None
"""A folder that holds run folders; None is `RUNS`, and for a loaded study its own."""

StudyLike = str | Path | Mapping[str, Any] | StudyConfig | StudyForm
"""A study: its file, a name or run folder (see `find_study`), what a file says, or a loaded one."""


def read_study(study: StudyLike, overrides: Overrides = (), runs: Runs = None) -> StudyForm:
    """Read a study without asking fairseq, which suffices to find its record.

    Args:
        study: File, name, run folder, dict or config of the study, or one that is loaded.
        overrides: Values that replace the study's.
        runs: Folder for run folders.

    Returns:
        What its file says; a loaded study itself if nothing is replaced.

    Raises:
        ConfigError: it is not of the form of a study; lists every fault, by key path.
        UsageError: a run folder holds no settings.
    """
    if isinstance(study, StudyForm):
        if not overrides and runs is None:
            return study
        return study.with_values(overrides, runs=None if runs is None else Path(runs))
    folder = Path(runs or RUNS)
    if isinstance(study, str | Path):
        return read_form(study, overrides=overrides, runs=folder)
    return form_of(study, overrides=overrides, runs=folder)


def read_form(name: str | Path, *, overrides: Overrides = (), runs: Path = RUNS) -> StudyForm:
    """Read a study's file, or what the record of its run folder holds of it.

    Args:
        name: Path or name, as `find_study` takes it.
        overrides: Values that replace those of the file.
        runs: Folder for run folders.

    Raises:
        ConfigError: there is no such study, or it is not of the form of one; lists every fault.
        UsageError: a run folder holds no settings.
    """
    path = find_study(name, runs)
    folder = None if path.is_file() else path.absolute()
    tree = read_yaml(path) if folder is None else recorded_tree(open_run_folder(path))
    recorded = tree.get("name")
    texts = override_texts(overrides, tree)
    config = parse_config(overridden(tree, overrides), str(path))
    typed = (str(name), *typed_overrides(texts))
    if runs != RUNS:
        typed += ("--runs", str(runs))
    return StudyForm(
        config=config,
        runs=runs.absolute() if folder is None else folder.parent,
        typed=typed,
        source=str(path),
        run_folder=folder if config.name == recorded else None,
    )


def find_study(name: str | Path, runs: Path = RUNS) -> Path:
    """The file or the run folder that is meant by a path or a name.

    Files come first: a path with an ending, a shipped name, NAME.yaml in the current folder. Then
    run folders: a path, a name in `runs`. A `Path` that is a run folder is never a shipped name.

    Args:
        name: Path or name.
        runs: Folder that holds run folders.

    Raises:
        ConfigError: there is neither; proposes the most similar name.
    """
    if isinstance(name, Path) and is_run_folder(name):
        return name
    try:
        return find_file(str(name), "studies", known=lambda: known_studies(runs))
    except ConfigError:
        with contextlib.suppress(OSError):  # a name that no file can have
            for folder in (Path(name), runs / name):
                if is_run_folder(folder):
                    return folder
            if Path(name).is_dir():
                return Path(name)  # of which `open_run_folder` says what it lacks
        raise


def form_of(
    config: Mapping[str, Any] | StudyConfig,
    *,
    folder: Path | None = None,
    overrides: Overrides = (),
    runs: Path = RUNS,
) -> StudyForm:
    """A study without a file.

    Args:
        config: Sections and values as a file has them, or the configuration.
        folder: Folder that relative paths of the configuration start from; the current one if left
            out. Those of overrides are taken from it too.
        overrides: Values that replace others.
        runs: Folder for run folders.

    Raises:
        ConfigError: it is not of the form of a study; lists every fault.
    """
    tree = overridden(tree_of(config, NO_FILE), overrides)
    if folder is not None:
        tree = relative_to(tree, folder)
    return StudyForm(config=parse_config(tree, NO_FILE), runs=runs.absolute())


def parse_config(tree: Any, source: str) -> StudyConfig:
    """A study's sections and values as its configuration.

    Args:
        tree: Sections and values, as a file gives them.
        source: Name that messages give, such as the file's path.

    Raises:
        ConfigError: lists everything that is not of the form of a study, by key path.
    """
    try:
        return StudyConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(source, faults_of(error, model=StudyConfig)) from None


def typed_overrides(texts: Sequence[str]) -> tuple[str, ...]:
    """Overrides as arguments of a command, without any password that is in them."""
    return tuple(part for text in texts for part in ("--set", mask(text)))
