"""Rows of a batch that serve several hypotheses: beam search keeps those of a sentence together."""

from __future__ import annotations

import torch
from torch import Tensor


def follow(order: Tensor, beams: int) -> tuple[Tensor, int]:
    """Which rows to keep when hypotheses are put in another order.

    Args:
        order: Numbers of the hypotheses to keep, (new hypotheses).
        beams: Hypotheses that share a row, side by side.

    Returns:
        The rows, and how many hypotheses share each of them: as many as before, or one if the order
        tears them apart.
    """
    if beams == 1:
        return order, 1
    rows = order // beams
    if rows.numel() % beams:
        return rows, 1
    together = rows.view(-1, beams)
    if (together == together[:, :1]).all():
        return together[:, 0], beams
    return rows, 1


def repeats(order: Tensor, rows: int) -> int:
    """How often an order repeats each of so many rows, one after the other; 1 if it does not."""
    times, rest = divmod(order.numel(), rows)
    if rest or times < 2:
        return 1
    repeated = torch.arange(rows, device=order.device).repeat_interleave(times)
    return times if torch.equal(order, repeated) else 1
