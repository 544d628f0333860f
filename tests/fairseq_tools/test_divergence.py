"""How far predictions of a converted model are from the trained one's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from nas_attn.fairseq_tools import divergence as module
from nas_attn.fairseq_tools.divergence import Divergence, ScoreRecorder


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logarithms of probabilities (B, T, types), and which targets are seen."""
    torch.manual_seed(1)
    found = []
    for number in range(count):
        scores = torch.randn(3, 4 + number, 7).log_softmax(-1)
        seen = torch.arange(4 + number) < torch.tensor([[4], [2], [4 + number]])
        found.append((scores, seen))
    return found


def test_it_is_the_divergence_of_seen_targets() -> None:
    recorder, trained = ScoreRecorder(), batches(3)
    for number, (scores, seen) in enumerate(trained):
        recorder(number, scores, seen)
    compared = Divergence(recorder.scores)
    total, tokens = 0.0, 0
    for number, (scores, seen) in enumerate(trained):
        other = (scores + 0.3 * torch.randn_like(scores)).log_softmax(-1)
        compared(number, other, seen)
        each = torch.nn.functional.kl_div(other, scores, log_target=True, reduction="none").sum(-1)
        total += float(each[seen].sum()) / math.log(2.0)
        tokens += int(seen.sum())
    mean, error = compared.mean()
    assert mean == pytest.approx(total / tokens, rel=1e-3)
    assert 0 < error < mean


def test_a_model_does_not_diverge_from_itself() -> None:
    recorder, trained = ScoreRecorder(), batches(2)
    for number, given in enumerate(trained):
        recorder(number, *given)
    compared = Divergence(recorder.scores)
    for number, given in enumerate(trained):
        compared(number, *given)
    mean, _ = compared.mean()
    assert 0 <= mean < 1e-5, "what is kept is rounded"


def test_of_many_batches_some_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short and long ones, within the room that there is."""
    recorder, trained = ScoreRecorder(), batches(16)
    monkeypatch.setattr(module, "MAX_BYTES", 1500)
    for number, given in enumerate(trained):
        recorder(number, *given)
    size = sum(t.numel() * t.element_size() for t in recorder.scores.values())
    assert 300 < size <= 1500
    kept = sorted(recorder.scores)
    assert len(kept) > 1 and kept == list(range(0, 16, recorder.every))
    compared = Divergence(recorder.scores)
    for number, given in enumerate(trained):
        compared(number, *given)
    assert len(compared.tokens) == 3 * len(kept)


def test_without_kept_predictions_nothing_is_said(tmp_path: Path) -> None:
    compared = Divergence({})
    compared(0, *batches(1)[0])
    assert all(math.isnan(value) for value in compared.mean())
