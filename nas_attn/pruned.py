"""Schemes that prune while they train, and what pruning left, in words; apart, as torch is slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from nas_attn.plan import AttentionPlan, OptionValue


class Pruning(NamedTuple):
    """How a scheme prunes.

    Args:
        option: Option that asks for it.
        off: Value of the option that does not.
        counted: Option that counts the parts of what is left.
        words: What the parts are.
    """

    option: str
    off: OptionValue
    counted: str
    words: str

    def is_on(self, options: Mapping[str, Any]) -> bool:
        """Whether a module with these options is pruned in training."""
        return bool(options.get(self.option, self.off) != self.off)


PRUNING = {
    "collaborative": Pruning("dim_threshold", 0.0, "shared_dim", "shared dimensions"),
    "grouped_head": Pruning("keep", "all", "kept_heads", "heads"),
}


def left_text(plan: AttentionPlan, pruned: AttentionPlan) -> str:
    """What pruning left where it could prune, in words: "encoder_self 4+3 heads".

    Args:
        plan: Plan before pruning.
        pruned: Plan after it.
    """
    before, texts = dict(plan), []
    for site, choices in pruned:
        count = max(len(choices), len(before[site]))
        counts: list[tuple[int, OptionValue, str]] = []
        pairs = zip(plan.layers(site, count), pruned.layers(site, count), strict=True)
        for layer, (old, new) in enumerate(pairs):
            how = PRUNING.get(old.scheme)
            if how is not None and how.is_on(dict(old.options)):
                counts.append((layer, dict(new.options).get(how.counted, "all"), how.words))
        names = {words for _, _, words in counts}
        if len(counts) == count and len(names) == 1:
            numbers = "+".join(str(number) for _, number, _ in counts)
            texts.append(f"{site} {numbers} {names.pop()}")
        else:
            texts += [f"{site}.{layer} {number} {words}" for layer, number, words in counts]
    return ", ".join(texts)
