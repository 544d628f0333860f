"""The form of a search-space file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nas_attn.plan import OptionValue
from nas_attn.section import Section


class FractionsOfWidth(Section):
    """Option values given as fractions of the site's `embed_dim`."""

    fraction_of_embed_dim: Annotated[list[float | int], Field(min_length=1)]


Domain = Annotated[list[OptionValue], Field(min_length=1)] | FractionsOfWidth
"""Values that an option may take."""

Schemes = Annotated[dict[str, dict[str, Domain]], Field(min_length=1)]
"""For each scheme on offer, the options searched; options left out keep their defaults."""

SiteName = Literal["encoder_self", "decoder_self", "encoder_decoder"]


class SpaceConfig(Section):
    """A search space: what is decided, how often, and among which schemes and options."""

    description: str = ""
    decide: Literal["model", "site", "layer"] = "site"
    """Choose once for the whole model, once for each site, or for each layer of each site."""
    schemes: Schemes
    """On offer at every site that `sites` does not name."""
    sites: dict[SiteName, Schemes] = Field(default_factory=dict)
    """On offer at single sites instead."""
