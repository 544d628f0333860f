"""Votes on a trained baseline, as its record keeps them."""

from __future__ import annotations

from nas_attn.engine.store import TrialStore
from nas_attn.space.votes import Votes

VOTES = "votes"
"""Under this name the record keeps what votes on the baseline have decided."""


def votes_of(store: TrialStore) -> Votes:
    """The votes that a record keeps; none if none were held."""
    return Votes.from_json(store.metadata().get(VOTES, ()))


def keep_votes(store: TrialStore, votes: Votes) -> Votes:
    """Add votes to a record; those that it has stay.

    Returns:
        All that it has then.
    """
    together = Votes({**votes.settled, **votes_of(store).settled})
    store.set_metadata(VOTES, together.to_json())
    return together
