"""The form of a search-space file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from nas_attn.config_model import ConfigModel, Scalar

Fractions = Annotated[list[float | int], Field(min_length=1)]


class FractionsOfWidth(ConfigModel):
    """Option values given as fractions of the site's `embed_dim`."""

    fraction_of_embed_dim: Fractions
    """Values as fractions of the width `embed_dim` of the site."""


class FractionsOfHeads(ConfigModel):
    """Option values given as fractions of the site's `num_heads`."""

    fraction_of_num_heads: Fractions
    """Values as fractions of the number of heads of the site."""


def _kind(value: Any) -> str:
    if isinstance(value, FractionsOfHeads):
        return "[heads]"
    if isinstance(value, dict | FractionsOfWidth):
        return "[heads]" if "fraction_of_num_heads" in dict(value) else "[width]"
    return "[values]"


# Tags in brackets name no key of the file, so they are left out of key paths.
Domain = Annotated[
    Annotated[list[Scalar], Field(min_length=1), Tag("[values]")]
    | Annotated[FractionsOfWidth, Tag("[width]")]
    | Annotated[FractionsOfHeads, Tag("[heads]")],
    Discriminator(_kind),
]
"""Values that an option may take."""

Schemes = Annotated[dict[str, dict[str, Domain]], Field(min_length=1)]
"""For each scheme on offer, the options searched; options left out keep their defaults. A scheme
may stand several times, each time with another word behind it: `grouped_head (voted)`."""


def scheme_of(name: str) -> str:
    """The scheme of a name on offer, without the word behind it."""
    scheme, bracket, word = name.partition(" (")
    return scheme if bracket and word[:-1].isidentifier() and word[-1:] == ")" else name


SiteName = Literal["encoder_self", "decoder_self", "encoder_decoder"]


class SpaceConfig(ConfigModel):
    """A search space: what is decided, how often, and among which schemes and options."""

    description: str = ""
    """Text for people."""
    decide: Literal["model", "site", "layer"] = "site"
    """Choose a scheme once for the whole model, once per site (encoder self-attention, decoder
    self-attention, encoder-decoder attention), or for each layer of each site."""
    schemes: Schemes
    """Schemes to choose from, each with the values of its options that are searched, such as
    {multi_head: {}, collaborative: {shared_dim: [32, 64]}}."""
    sites: dict[SiteName, Schemes] = Field(default_factory=dict)
    """Schemes to choose from at single sites instead, by site."""
