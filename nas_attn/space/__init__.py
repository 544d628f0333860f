"""Search spaces: what a search may choose, as data."""

from nas_attn.space.config import SpaceConfig
from nas_attn.space.space import Alternative, Decision, SearchSpace, Unit

__all__ = ["Alternative", "Decision", "SearchSpace", "SpaceConfig", "Unit"]
