"""Measure the shipped search spaces on an architecture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nas_attn.errors import ConfigError, NasAttnError, PlanError
from nas_attn.fairseq_tools.models import Sizer, blank_dictionary, parse_architecture
from nas_attn.study.shipped import shipped_names
from nas_attn.study.spaces import load_space_config, measure_space


@dataclass(frozen=True, kw_only=True)
class MeasuredSpace:
    """A shipped space over one architecture.

    Args:
        name: Name of the space.
        description: Description in its file.
        plans: Number of plans in it.
        fewest: Parameters of its smallest model, embeddings left out.
        most: Parameters of its largest one.
        misfit: Reason why the architecture has no such space; None if it has.
    """

    name: str
    description: str
    plans: int = 0
    fewest: float = 0
    most: float = 0
    misfit: str | None = None


def measure_spaces(arch: str, flags: Sequence[str]) -> Iterator[MeasuredSpace]:
    """Sizes of the shipped search spaces.

    Args:
        arch: Name of an architecture of fairseq or of the plugin.
        flags: Further flags of fairseq, such as `--decoder-layers 6`.

    Raises:
        NasAttnError: fairseq has no such architecture, or no such flag.
    """
    try:
        args = parse_architecture(arch, flags)
        sizer = Sizer.of(args, [blank_dictionary(8)])
    except ValueError as error:
        raise NasAttnError(str(error)) from None
    for name in shipped_names("search_spaces"):
        config = load_space_config(name)
        about = config.description.strip()
        try:
            plans, fewest, most = measure_space(config, sizer)
        except (ConfigError, PlanError) as error:
            yield MeasuredSpace(name=name, description=about, misfit=str(error))
            continue
        yield MeasuredSpace(name=name, description=about, plans=plans, fewest=fewest, most=most)
