"""Search spaces as units of choice.

A space over a concrete model is a list of units (the model, a site, or a layer), each with its
alternatives. A plan picks one alternative in every unit. Everything that depends only on a plan and
adds over units, such as parameters, can therefore be tabulated.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from nas_attn.errors import ConfigError, ConfigIssue
from nas_attn.plan import (
    NO_ATTENTION,
    SITES,
    AttentionChoice,
    AttentionPlan,
    OptionValue,
    SiteShape,
)
from nas_attn.space.config import (
    FractionsOfHeads,
    FractionsOfWidth,
    Schemes,
    SpaceConfig,
    scheme_of,
)
from nas_attn.space.votes import Votes


@dataclass(frozen=True)
class Dimension:
    """One question that a sampler answers with an index into `values`."""

    name: str
    values: tuple[OptionValue, ...]

    @property
    def is_ordered(self) -> bool:
        """Whether the values are ascending numbers, so that neighbours are alike."""
        if any(isinstance(value, bool | str) for value in self.values):
            return False
        return all(a < b for a, b in itertools.pairwise(self.values))  # type: ignore[operator]


@dataclass(frozen=True)
class Option:
    """What one unit may choose.

    Args:
        picks: Name of each decision on the way here, with the index picked.
        choices: The resulting choice at each of the unit's sites.
        settled: At sites where it is known what votes make of it, the choice of each layer.
    """

    picks: tuple[tuple[str, int], ...]
    choices: tuple[tuple[str, AttentionChoice], ...]
    settled: tuple[tuple[str, tuple[AttentionChoice, ...]], ...] = ()

    @property
    def is_blind(self) -> bool:
        """Whether the decoder does not see the source in the unit's layers."""
        choice = dict(self.choices).get("encoder_decoder")
        return choice is not None and choice.scheme == NO_ATTENTION

    def at(self, site: str, num_layers: int) -> tuple[AttentionChoice, ...]:
        """What each of the unit's layers of a site gets."""
        return dict(self.settled).get(site) or (dict(self.choices)[site],) * num_layers


@dataclass(frozen=True)
class Unit:
    """A part of the model for which one choice is made.

    Args:
        name: `model`, a site, or `SITE.LAYER`.
        sites: The sites covered.
        layer: The layer covered, or None for all.
        scheme: Decision for a scheme.
        options: Decisions of each scheme, which values its searched options take.
        alternatives: All ways to answer.
    """

    name: str
    sites: tuple[str, ...]
    layer: int | None
    scheme: Dimension
    options: tuple[tuple[Dimension, ...], ...]
    alternatives: tuple[Option, ...]

    def choose(self, pick: Callable[[Dimension], int]) -> Option:
        """Ask `pick` only the decisions that matter, and return what the answers select."""
        index = pick(self.scheme)
        answers = {self.scheme.name: index}
        answers |= {decision.name: pick(decision) for decision in self.options[index]}
        return next(a for a in self.alternatives if dict(a.picks) == answers)


class SearchSpace:
    """A search space over the sites of one model.

    Args:
        config: Configuration of what is on offer.
        shapes: The model's sites.

    Raises:
        ConfigError: the configuration does not fit the model; faults carry key paths.
    """

    def __init__(self, config: SpaceConfig, shapes: Mapping[str, SiteShape]) -> None:
        self.config = config
        self.shapes = {site: shapes[site] for site in SITES if site in shapes}
        faults: list[ConfigIssue] = []
        for site in config.sites:
            if site not in self.shapes:
                faults.append(ConfigIssue(f"sites.{site}", "the model has no such site"))
        if config.sites and config.decide == "model":
            faults.append(ConfigIssue("sites", "cannot differ when decide is model"))
        if not faults:
            self.units = tuple(self._build_units(faults))
            faults += self._blind_faults()
        if faults:
            raise ConfigError("search space", faults)

    @property
    def size(self) -> int:
        """Number of plans, those left out whose decoder would not see the source."""
        count = math.prod(len(unit.alternatives) for unit in self.units)
        if not any(option.is_blind for unit in self.units for option in unit.alternatives):
            return count
        return count - math.prod(
            sum(o.is_blind or "encoder_decoder" not in unit.sites for o in unit.alternatives)
            for unit in self.units
        )

    def plan(self, alternatives: Sequence[Option]) -> AttentionPlan:
        """Join one alternative of every unit into a plan, votes as they were settled."""
        layers: dict[str, list[AttentionChoice]] = {site: [] for site in self.shapes}
        for unit, alternative in zip(self.units, alternatives, strict=True):
            for site, _ in alternative.choices:
                layers[site] += alternative.at(site, self.count_layers(unit, site))
        return AttentionPlan.of({site: choices for site, choices in layers.items() if choices})

    def encode(self, plan: AttentionPlan) -> tuple[Option, ...] | None:
        """Find the alternatives that make up a plan; None if the space does not hold it.

        A plan may have votes as they were settled, or as they are on offer.
        """
        found = []
        for unit in self.units:
            wanted = {}
            for site in unit.sites:
                choices = plan.layers(site, self.shapes[site].num_layers)
                wanted[site] = choices if unit.layer is None else choices[unit.layer :][:1]
            match = self._find(unit, wanted)
            if match is None:
                return None
            found.append(match)
        return tuple(found)

    def _find(self, unit: Unit, wanted: Mapping[str, tuple[AttentionChoice, ...]]) -> Option | None:
        """A unit's first alternative that gives its layers of each site the wanted choices."""
        by_words = None
        for alternative in unit.alternatives:
            if all(alternative.at(site, len(w)) == w for site, w in wanted.items()):
                return alternative
            if by_words is None and all(
                set(wanted[site]) == {choice} for site, choice in alternative.choices
            ):
                by_words = alternative
        return by_words

    def count_layers(self, unit: Unit, site: str) -> int:
        """Layers of a site that a unit covers."""
        return self.shapes[site].num_layers if unit.layer is None else 1

    def settled(self, votes: Votes) -> SearchSpace:
        """The space with what votes on a trained model have decided.

        Its plans have the heads that stay in the place of the vote; what was not voted on is as it
        was. Decisions and their names are the same.
        """

        def settle(unit: Unit, option: Option) -> Option:
            known = []
            for site, choice in option.choices:
                layers = range(self.shapes[site].num_layers) if unit.layer is None else [unit.layer]
                found = [votes.of(site, layer, choice) for layer in layers]
                if all(found):
                    known.append((site, tuple(c for c in found if c is not None)))
            return replace(option, settled=tuple(known))

        space = copy.copy(self)
        space.units = tuple(
            replace(unit, alternatives=tuple(settle(unit, o) for o in unit.alternatives))
            for unit in self.units
        )
        return space

    def as_offered(self, plan: AttentionPlan) -> AttentionPlan:
        """A plan of the space with votes as they are on offer, and not as they were settled."""
        found = self.encode(plan)
        if found is None:
            return plan
        return self.plan([replace(option, settled=()) for option in found])

    def choices(self) -> Iterator[tuple[str, str, AttentionChoice]]:
        """Every distinct (key path, site, choice) on offer, for checking."""
        seen = set()
        for unit in self.units:
            for alternative in unit.alternatives:
                name = unit.scheme.values[alternative.picks[0][1]]
                for site, choice in alternative.choices:
                    key = f"sites.{site}" if site in self.config.sites else "schemes"
                    entry = (f"{key}.{name}", site, choice)
                    if entry not in seen:
                        seen.add(entry)
                        yield entry

    def _blind_faults(self) -> list[ConfigIssue]:
        """No attention on offer where it would be that of all layers between decoder and encoder;
        where layers decide apart, a plan without any is no plan of the space."""
        units = [unit for unit in self.units if "encoder_decoder" in unit.sites]
        blind = [[option.is_blind for option in unit.alternatives] for unit in units]
        if not units or not (all(map(all, blind)) or (len(units) == 1 and any(blind[0]))):
            return []
        key = "sites.encoder_decoder" if "encoder_decoder" in self.config.sites else "schemes"
        return [
            ConfigIssue(
                f"{key}.{NO_ATTENTION}",
                "in every layer of encoder_decoder at once, the decoder would not see the source: "
                "decide layer by layer beside another scheme, or give sites.encoder_decoder "
                "schemes of its own",
            )
        ]

    def _build_units(self, faults: list[ConfigIssue]) -> Iterator[Unit]:
        if self.config.decide == "model":
            yield self._build_unit("model", tuple(self.shapes), None, faults)
            return
        for site, shape in self.shapes.items():
            if self.config.decide == "site":
                yield self._build_unit(site, (site,), None, faults)
                continue
            for layer in range(shape.num_layers):
                # The same faults in every layer are reported once.
                reported = faults if layer == 0 else []
                yield self._build_unit(f"{site}.{layer}", (site,), layer, reported)

    def _build_unit(
        self, name: str, sites: tuple[str, ...], layer: int | None, faults: list[ConfigIssue]
    ) -> Unit:
        offered: Schemes = self.config.schemes
        key = "schemes"
        if sites[0] in self.config.sites:
            offered, key = dict(self.config.sites)[sites[0]], f"sites.{sites[0]}"
        scheme = Dimension(f"{name}.scheme", tuple(offered))
        options = []
        alternatives = []
        for index, (scheme_name, domains) in enumerate(offered.items()):
            # For each site the values of each option; a decision picks an index into them.
            values = {
                site: [
                    self._resolve(f"{key}.{scheme_name}.{option}", domain, site, faults)
                    for option, domain in domains.items()
                ]
                for site in sites
            }
            decisions = tuple(
                Dimension(f"{name}.{scheme_name}.{option}", resolved)
                for option, resolved in zip(domains, values[sites[0]], strict=True)
            )
            options.append(decisions)
            for picked in itertools.product(*(range(len(d.values)) for d in decisions)):
                picks = (
                    (scheme.name, index),
                    *zip((d.name for d in decisions), picked, strict=True),
                )
                choices = []
                for site in sites:
                    chosen = [v[i] for v, i in zip(values[site], picked, strict=True)]
                    given = dict(zip(domains, chosen, strict=True))
                    choices.append((site, AttentionChoice.of(scheme_of(scheme_name), **given)))
                alternatives.append(Option(picks, tuple(choices)))
        return Unit(name, sites, layer, scheme, tuple(options), tuple(alternatives))

    def _resolve(
        self, key: str, domain: object, site: str, faults: list[ConfigIssue]
    ) -> tuple[OptionValue, ...]:
        shape = self.shapes[site]
        if isinstance(domain, FractionsOfWidth):
            fractions, name, size = domain.fraction_of_embed_dim, "embed_dim", shape.embed_dim
        elif isinstance(domain, FractionsOfHeads):
            fractions, name, size = domain.fraction_of_num_heads, "num_heads", shape.num_heads
        else:
            return self._distinct(key, list(domain), faults)  # type: ignore[call-overload]
        key = f"{key}.fraction_of_{name}"
        values: list[OptionValue] = []
        for fraction in fractions:
            value = fraction * size
            if value < 1 or value != int(value):
                message = f"{fraction} of the {name} {size} of {site} is no whole number"
                faults.append(ConfigIssue(key, message))
            values.append(int(value))
        return self._distinct(key, values, faults)

    def _distinct(
        self, key: str, values: list[OptionValue], faults: list[ConfigIssue]
    ) -> tuple[OptionValue, ...]:
        if len(set(values)) != len(values):
            faults.append(ConfigIssue(key, "the same value stands twice"))
        return tuple(values)
