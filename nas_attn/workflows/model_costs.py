"""What plans of any PyTorch model cost, exactly."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from nas_attn.attention.counting import count_model
from nas_attn.conversion import Conversions
from nas_attn.conversion.convert import build_like
from nas_attn.plan import AttentionChoice, AttentionPlan

_Counts = tuple[int, int, int]
"""Parameters, effective ones, and numbers in the cache for each token."""


CACHES = {"cache_bytes": "decoder_self", "source_cache_bytes": "encoder_decoder"}
"""Sites that keep keys and values in decoding, by the cost that counts them."""


class ModelCosts:
    """Counts of a model for any plan: parameters, and bytes of keys and values that are kept.

    Args:
        conversions: The model.
    """

    def __init__(self, conversions: Conversions) -> None:
        self._conversions = conversions
        self._attention = conversions.attention
        self._known: dict[tuple[str, AttentionChoice], _Counts] = {}
        self._whole = count_model(conversions.convert(AttentionPlan.of({})))
        self._bytes = max(
            parameter.element_size()
            for m in self._attention.values()
            for parameter in m.parameters()
        )
        self._caching = {
            cost: [name for name, of_module in conversions.sites.items() if of_module == site]
            for cost, site in CACHES.items()
        }

    def __call__(self, plan: AttentionPlan) -> Mapping[str, int]:
        """What a plan costs, by the name of the cost; caches only where there is a decoder.

        Raises:
            PlanError: The plan does not fit.
        """
        plain = AttentionChoice.of("multi_head")
        changed = self._conversions.changed(plan)
        counts = {name: self._count(name, changed.get(name, plain)) for name in self._attention}
        attention, effective = (sum(c[place] for c in counts.values()) for place in range(2))
        rest = self._whole.total - self._whole.attention
        costs = {
            "attention": attention,
            "non_embedding": self._whole.non_embedding - self._whole.attention + attention,
            "total": rest + attention,
            "effective": rest + effective,
        }
        for cost, modules in self._caching.items():
            if modules:
                costs[cost] = self._bytes * sum(counts[name][2] for name in modules)
        return costs

    def _count(self, name: str, choice: AttentionChoice) -> _Counts:
        if (name, choice) not in self._known:
            with torch.device("meta"):
                module = build_like(self._attention[name], choice)
            parameters = sum(parameter.numel() for parameter in module.parameters())
            found = (parameters, module.effective_parameters(), module.cache_size())
            self._known[name, choice] = found
        return self._known[name, choice]
