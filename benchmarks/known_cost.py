"""Seconds that a proposal of `known_cost` takes, by trials that have ended.

    python benchmarks/known_cost.py

The space is `three_papers_per_layer` on a Transformer of 6+6 layers, width 512; losses are made up.
CPU seconds of one thread.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.attention.counting import count_plan, expected_plan
from nas_attn.engine.known_costs import choices_of
from nas_attn.engine.samplers import StratifiedSampler
from nas_attn.known_cost.proposals import History, KnownCostProposer
from nas_attn.plan import AttentionPlan, SiteShape
from nas_attn.space import SearchSpace
from nas_attn.study.spaces import load_space_config

COUNTS = (50, 500, 5_000)
PROPOSALS = 5


def main() -> None:
    shapes = {
        site: SiteShape(num_layers=6, embed_dim=512, num_heads=8)
        for site in ("encoder_self", "decoder_self", "encoder_decoder")
    }
    space = SearchSpace(load_space_config("three_papers_per_layer"), shapes)

    def attention(plan: AttentionPlan) -> int:
        return count_plan(expected_plan(plan, shapes)[0], shapes).parameters

    spread = StratifiedSampler(space, attention, seed=1)
    proposer = KnownCostProposer(choices_of(space, spread.tables), spread.base, 1)
    counts = [len(unit.alternatives) for unit in space.units]
    print(f"{space.size:.1e} plans, {len(counts)} units of {counts[0]} choices")
    generator = np.random.default_rng(1)
    effects = [generator.normal(size=count) for count in counts]
    for count in COUNTS:
        tried = np.stack([generator.integers(0, n, count) for n in counts], 1)
        losses = sum(effect[tried[:, u]] for u, effect in enumerate(effects))
        history = History(tried, losses + generator.normal(size=count), tried[:0])
        began = time.process_time()
        for number in range(PROPOSALS):
            proposer.propose(number, history, lambda picks: True)
        seconds = (time.process_time() - began) / PROPOSALS
        print(f"{count:6,d} trials: {seconds:.2f} s a proposal", flush=True)


if __name__ == "__main__":
    main()
