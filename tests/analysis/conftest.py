"""Fixtures of the tests of analysis."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas_attn.analysis.trials import Trials
from tests.helpers.searched import searched_trials


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    return searched_trials(tmp_path / "run")
