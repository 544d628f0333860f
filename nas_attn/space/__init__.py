"""Search spaces: what a search may choose, as data."""

from nas_attn.space.config import SpaceConfig
from nas_attn.space.space import Dimension, Option, SearchSpace, Unit
from nas_attn.space.votes import Votes

__all__ = ["Dimension", "Option", "SearchSpace", "SpaceConfig", "Unit", "Votes"]
