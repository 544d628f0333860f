"""Tests that need a GPU are marked `cuda`; elsewhere tests/conftest.py skips them and says why."""

from __future__ import annotations

import pytest
import torch

needs_cuda = pytest.mark.cuda
"""Of a test, of a value (`pytest.param("cuda", marks=needs_cuda)`) or of a file (`pytestmark`)."""

devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
"""Gives a test `device`, first cpu, then cuda."""


def skip_without_cuda(item: pytest.Item) -> None:
    """Skip a test that is marked `cuda` where PyTorch finds no GPU."""
    if item.get_closest_marker("cuda") is not None and not torch.cuda.is_available():
        item.add_marker(pytest.mark.skip(reason="needs a GPU, and PyTorch finds none here"))
