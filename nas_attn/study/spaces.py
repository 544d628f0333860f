"""Search-space files, and spaces over a model."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nas_attn.attention.counting import build_on_meta, expected_plan, least_plan
from nas_attn.config_model import faults_of
from nas_attn.engine.samplers import StratifiedSampler
from nas_attn.errors import ConfigError, ConfigIssue, PlanError
from nas_attn.fairseq_tools.models import Sizer
from nas_attn.plan import AttentionChoice, SiteShape
from nas_attn.space import SearchSpace, SpaceConfig
from nas_attn.space.fitting import fitting
from nas_attn.study.shipped import find_file, shipped_folder
from nas_attn.yaml_file import read_yaml

logger = logging.getLogger(__name__)

SpaceLike = str | Path | Mapping[str, Any]
"""Name of a shipped space, path of a file, or what such a file holds."""


def load_space_config(name: str) -> SpaceConfig:
    """Load a search-space file by path or shipped name.

    Raises:
        ConfigError: lists everything that is wrong, by key path.
    """
    path = find_file(name, "search_spaces")
    return _validated(str(path), read_yaml(path))


def _validated(source: str, settings: object) -> SpaceConfig:
    try:
        return SpaceConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(source, faults_of(error, model=SpaceConfig)) from None


def space_over(name: SpaceLike, shapes: Mapping[str, SiteShape]) -> SearchSpace:
    """A space over a model; of a shipped one, what does not fit is left out.

    Args:
        name: Name of a shipped space, path of a file, or what such a file holds.
        shapes: Shapes of the model's sites.

    Raises:
        ConfigError: lists everything that is wrong, or does not fit the model, by key path.
    """
    if isinstance(name, Mapping):
        name, config = "space", _validated("space", name)
    else:
        name = str(name)
        config = fitted(name, load_space_config(name), shapes)
    space = SearchSpace(config, shapes)
    wrong = {(key, fault_of(choice, shapes[site])): None for key, site, choice in space.choices()}
    faults = [ConfigIssue(key, fault) for key, fault in wrong if fault is not None]
    if faults:
        raise ConfigError(name, faults)
    return space


def space_folder(name: str) -> str:
    """Name of a folder for what a space gives; another file gets another one.

    Raises:
        ConfigError: there is no such space.
    """
    path = find_file(name, "search_spaces")
    if _is_shipped(name):
        return path.stem
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', path.stem)[:100]}-{digest[:8]}"


def fault_of(choice: AttentionChoice, shape: SiteShape) -> str | None:
    """Why a choice does not fit a site; None if it does."""
    try:
        build_on_meta(choice, shape)
    except PlanError as error:
        return str(error)
    return None


def _is_shipped(name: str) -> bool:
    return find_file(name, "search_spaces").parent == shipped_folder("search_spaces")


def fitted(name: str, config: SpaceConfig, shapes: Mapping[str, SiteShape]) -> SpaceConfig:
    """A shipped space without what does not fit a model; one of the user's as it is."""
    if not _is_shipped(name):
        return config
    config, left_out = fitting(config, shapes, fault_of)
    if left_out:
        logger.info("space %s, left out for this model: %s", name, "; ".join(left_out))
    return config


def measure_space(config: SpaceConfig, sizer: Sizer) -> tuple[int, float, float]:
    """How large a space is over a model.

    Returns:
        The number of plans, and the fewest and the most parameters that one can come to,
        embeddings left out.

    Raises:
        ConfigError: the space does not fit the model.
    """
    space = SearchSpace(config, sizer.shapes)
    least = StratifiedSampler(
        space, lambda plan: sizer.size(least_plan(plan, sizer.shapes)).non_embedding, seed=0
    )
    most = StratifiedSampler(
        space,
        lambda plan: sizer.size(expected_plan(plan, sizer.shapes)[0]).non_embedding,
        seed=0,
    )
    return space.size, least.low, most.high
