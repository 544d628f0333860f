"""Checkpoints that several files of tests read."""

from __future__ import annotations

import pytest

from nas_attn.fairseq_tools.data import PreparedData
from tests.helpers.checkpoints import (
    SIZES,
    State,
    state_of,
)


@pytest.fixture(scope="module")
def stock(tiny_translation: PreparedData) -> State:
    return state_of(tiny_translation.folder)


@pytest.fixture(scope="module")
def grouped(tiny_translation: PreparedData) -> State:
    """Of the plugin, a vote behind it."""
    flags = [*SIZES["encoder"], *SIZES["decoder"], "--keep=pillars", "--num-groups=1"]
    state = state_of(tiny_translation.folder, "grouped_head_transformer", flags=flags)
    for name, tensor in state["model"].items():
        if name.endswith(".kept"):
            tensor[1] = 0
        if name.endswith(".schedule"):
            tensor[0] = 3
    return state
