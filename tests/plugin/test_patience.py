"""A training that is resumed stops early where an unbroken one does."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

import pytest
from fairseq.tasks import TASK_REGISTRY
from fairseq_cli import train

LOSSES = (5.0, 4.0, 4.5, 4.5, 4.5, 4.5)
CONFIG = Namespace(checkpoint=Namespace(patience=3, maximize_best_checkpoint_metric=False))


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    """As a process that begins."""
    train.should_stop_early.__dict__.clear()


def stopped_at(broken_after: int | None) -> int:
    name = "reported_translation"
    task = object.__new__(TASK_REGISTRY[name])
    for at, loss in enumerate(LOSSES):
        if train.should_stop_early(CONFIG, loss):
            return at
        kept = task.get_checkpoint_dict()[type(task).__name__]
        if at == broken_after:
            forget()
            task = object.__new__(TASK_REGISTRY[name])
            task.set_checkpoint_dict(kept)
    return len(LOSSES)


@pytest.mark.parametrize("broken_after", [None, 0, 1, 2, 3])
def test_patience_goes_on(broken_after: int | None) -> None:
    assert stopped_at(broken_after) == 4


def test_a_checkpoint_without_a_count_is_read() -> None:
    task = object.__new__(TASK_REGISTRY["reported_masked_lm"])
    assert task.get_checkpoint_dict() == {"ReportedMaskedLMTask": {}}
    task.set_checkpoint_dict({})
    assert not train.should_stop_early(CONFIG, 1.0)
