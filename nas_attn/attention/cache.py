"""What incremental decoding keeps of the tokens so far, with room for those to come."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_ROOM = 32
"""Fewest tokens that a cache makes room for once it grows."""


class Cache:
    """Keys, or values, of the tokens so far: (batch, heads, length, width), shared heads once.

    New tokens are written behind the old ones, and room grows by a share of its length when it is
    full, so a step costs what it adds, not what is there. Where gradients are recorded nothing is
    written over: tokens are joined anew.

    Args:
        tokens: Keys or values of the first step, (batch, heads, steps, width).
        in_place: Whether rows are put in another order where they are, with twice the room, or
            copied by one operation, with an eighth more. On a CPU fresh memory costs more than a
            copy, and elsewhere every operation and every wait for one does; if left out, the
            device of `tokens` decides.
    """

    def __init__(self, tokens: Tensor, *, in_place: bool | None = None) -> None:
        self._room = tokens
        self._length = tokens.size(2)
        self._in_place = tokens.device.type == "cpu" if in_place is None else in_place

    @property
    def tokens(self) -> Tensor:
        """All tokens so far, (batch, heads, length, width); a view, good until the next change."""
        return self._room[:, :, : self._length]

    def append(self, tokens: Tensor) -> None:
        """Add the tokens of a step, (batch, heads, steps, width)."""
        length = self._length + tokens.size(2)
        if tokens.requires_grad or self._room.requires_grad:
            self._room = torch.cat([self.tokens, tokens], dim=2)
        else:
            if length > self._room.size(2):
                room = self._new_room(self._room.size(0), self._grown(length))
                room[:, :, : self._length] = self.tokens
                self._room = room
            self._room[:, :, self._length : length] = tokens
        self._length = length

    def _grown(self, length: int) -> int:
        """Tokens to make room for: fewer where an order copies the room too."""
        return max(MIN_ROOM, 2 * length) if self._in_place else length + max(MIN_ROOM, length // 8)

    def reorder(self, order: Tensor) -> None:
        """Keep the rows of the batch that `order` (new batch) names, in its order."""
        rows, kept = self._room.size(0), order.numel()
        if self._in_place and kept <= rows and not self._room.requires_grad:
            self._reorder_in_place(order)
        else:
            # With the room, rows are in one piece each, for which GPUs have their fastest kernel.
            self._room = self._room.index_select(0, order)

    def _reorder_in_place(self, order: Tensor) -> None:
        """Move the rows that change their place, head by head."""
        kept = order.numel()
        moved = (order != torch.arange(kept, device=order.device)).nonzero().squeeze(1)
        few = 2 * moved.numel() < kept
        for head in self.tokens.unbind(1):
            if few:
                head.index_copy_(0, moved, head.index_select(0, order[moved]))
            else:
                head[:kept] = head.index_select(0, order)
        self._room = self._room[:kept]

    def _new_room(self, batch: int, length: int) -> Tensor:
        _, heads, _, width = self._room.shape
        return self._room.new_empty(batch, heads, length, width)
