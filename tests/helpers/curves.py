"""Plans whose learning curves are replayed."""

from __future__ import annotations

from nas_attn.plan import AttentionChoice, AttentionPlan

MULTI_HEAD = AttentionPlan.uniform(AttentionChoice.of("multi_head")).dumps()
MULTI_QUERY = AttentionPlan.uniform(AttentionChoice.of("multi_query")).dumps()
MIXED = AttentionPlan.of(
    {
        "encoder_self": [AttentionChoice.of("collaborative", shared_dim=d) for d in (8, 16)],
        "decoder_self": AttentionChoice.of("multi_query"),
        "encoder_decoder": AttentionChoice.of("multi_head"),
    }
).dumps()
PARAMETERS = 250_000
