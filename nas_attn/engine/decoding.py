"""A table of the seconds that decoding spends in modules, as the measurements' record keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from nas_attn.engine.store import TrialStore
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape

DECODING: Final = "decoding_microseconds"
"""Name of the cost: microseconds a sentence, on the machine that the table is from."""
TIMES: Final = "decoding_times"
"""Under this name the record keeps the table."""


@dataclass(frozen=True)
class DecodingTable:
    """What decoding takes, in microseconds a sentence, on one machine.

    Args:
        machine: Machine, in words.
        baseline: Time of the whole baseline.
        modules: Times of one module, by its site and its choice in words.
        models: Times of other whole models that were timed, by the digest of their plan.
    """

    machine: str
    baseline: float
    modules: Mapping[str, Mapping[str, float]]
    models: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, machine: str, baseline: float, modules: Mapping[tuple[str, AttentionChoice], float]
    ) -> DecodingTable:
        by_site: dict[str, dict[str, float]] = {}
        for (site, choice), taken in modules.items():
            by_site.setdefault(site, {})[str(choice)] = round(taken, 1)
        return cls(machine, round(baseline, 1), by_site)

    def with_models(
        self, taken: Mapping[AttentionPlan, float], baseline: AttentionPlan
    ) -> DecodingTable:
        """The table with whole models, which were timed in turns with the baseline.

        Machines are faster at one time than at another, so times are put in proportion to what the
        baseline took when modules were timed.
        """
        scale = self.baseline / taken[baseline]
        found = {plan.digest: round(scale * seconds, 1) for plan, seconds in taken.items()}
        return replace(self, models={**self.models, **found})

    def knows(self, choices: Iterable[tuple[str, AttentionChoice]]) -> bool:
        """Whether all of these modules were timed."""
        return all(str(choice) in self.modules.get(site, {}) for site, choice in choices)

    def microseconds(
        self, plan: AttentionPlan, baseline: AttentionPlan, shapes: Mapping[str, SiteShape]
    ) -> int | None:
        """What decoding is expected to take with a plan: the baseline's time, and for each module
        what it differs by; None if a module was not timed.

        Args:
            plan: The plan.
            baseline: Plan of the trained model.
            shapes: Shapes of the model's sites.
        """
        total = self.baseline
        for site, shape in shapes.items():
            count = shape.num_layers
            known = self.modules.get(site, {})
            for choice, before in zip(
                plan.layers(site, count), baseline.layers(site, count), strict=True
            ):
                if choice != before:
                    if str(choice) not in known or str(before) not in known:
                        return None
                    total += known[str(choice)] - known[str(before)]
        return round(total)


def decoding_table(store: TrialStore) -> DecodingTable | None:
    """The table that a record keeps; None without one."""
    known: dict[str, Any] | None = store.metadata().get(TIMES)
    return None if known is None else DecodingTable(**known)


def keep_decoding_table(store: TrialStore, table: DecodingTable) -> None:
    """Keep a table in a record, in place of an earlier one."""
    store.set_metadata(TIMES, asdict(table))
