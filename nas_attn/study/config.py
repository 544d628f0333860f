"""The form of a study file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from nas_attn.config_model import ConfigModel
from nas_attn.engine.config import (
    ExecutionConfig,
    ObjectivesConfig,
    ResourcesConfig,
    SearchConfig,
)
from nas_attn.fairseq_tools.config import DataConfig, TrainingConfig
from nas_attn.simulation.synthetic import ReplayConfig
from nas_attn.space import SpaceConfig


class StudyConfig(ConfigModel):
    """A study file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=200)]
    """Name of the study: in its storage and of its run folder."""
    description: str = ""
    """Text for people; the report shows it."""
    data: DataConfig
    """Data set to train on."""
    training: TrainingConfig
    """Training that every trial runs, with another attention plan each."""
    space: Annotated[
        Annotated[str, Tag("[name]")] | Annotated[SpaceConfig, Tag("[inline]")],
        Discriminator(lambda value: "[name]" if isinstance(value, str) else "[inline]"),
    ]
    """Plans to search: name of a shipped search space, path of a file, or the space itself."""
    objectives: ObjectivesConfig = ObjectivesConfig()
    """Quality and costs to weigh against each other."""
    search: SearchConfig = SearchConfig()
    """How plans are proposed, and how many."""
    resources: ResourcesConfig = ResourcesConfig()
    """CPUs and GPUs of one trial."""
    execution: ExecutionConfig = ExecutionConfig()
    """Executor, number of trials in parallel, storage, retries and timeouts."""
    replay: ReplayConfig | None = None
    """Learning curves to replay instead of training, to try a search itself."""
