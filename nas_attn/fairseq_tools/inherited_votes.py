"""Votes on a trained checkpoint, held once for all plans that ask for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nas_attn.attention.voting import holds_vote
from nas_attn.conversion import RecordedCall, settled_choice
from nas_attn.errors import PlanError
from nas_attn.fairseq_tools.trained import TrainedModel
from nas_attn.plan import AttentionChoice
from nas_attn.space import SearchSpace
from nas_attn.space.votes import Votes

Place = tuple[str, int, AttentionChoice]
"""Site, layer, and a choice there."""


def votes_on_offer(space: SearchSpace) -> list[Place]:
    """The choices with a vote that a space has, in each layer; each once."""
    found: dict[Place, None] = {}
    for unit in space.units:
        for alternative in unit.alternatives:
            for site, choice in alternative.choices:
                if holds_vote(choice):
                    layers = range(space.shapes[site].num_layers)
                    for layer in layers if unit.layer is None else [unit.layer]:
                        found[site, layer, choice] = None
    return list(found)


def hold_votes(
    trained: TrainedModel,
    wanted: Iterable[Place],
    calls: Mapping[str, Sequence[RecordedCall]],
) -> Votes:
    """Hold votes on a trained model as its conversion would (see `convert_trained`).

    Args:
        trained: Trained model; not changed.
        wanted: Choices with a vote, and where.
        calls: Calls of its attention modules, by place.

    Raises:
        PlanError: a choice does not fit; the message names the place.
    """
    numbers = {place: number for number, place in enumerate(trained.modules)}
    settled = {}
    for site, layer, choice in wanted:
        place = f"{site}.{layer}"
        module = trained.modules[site, layer].attention
        try:
            left = settled_choice(module, choice, calls[place], seed=numbers[site, layer])
        except PlanError as error:
            raise PlanError(f"{place}: {error}") from None
        settled[place, choice] = left
    return Votes(settled)
