"""The table of modules' times in decoding."""

from __future__ import annotations

from pathlib import Path

from nas_attn.engine.decoding import DecodingTable, decoding_table, keep_decoding_table
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape

of = AttentionChoice.of
OURS, SHARED = of("multi_head"), of("multi_query")
SHAPES = {
    site: SiteShape(embed_dim=8, num_heads=2, num_layers=layers)
    for site, layers in (("encoder_self", 2), ("decoder_self", 2))
}
BASELINE = AttentionPlan.uniform(OURS, tuple(SHAPES))
TABLE = DecodingTable.of(
    "here",
    1000.04,
    {
        ("encoder_self", OURS): 10.0,
        ("encoder_self", SHARED): 8.0,
        ("decoder_self", OURS): 300.0,
        ("decoder_self", SHARED): 120.5,
    },
)


def test_modules_add_up() -> None:
    assert TABLE.microseconds(BASELINE, BASELINE, SHAPES) == 1000
    mixed = AttentionPlan.of({"encoder_self": SHARED, "decoder_self": [OURS, SHARED]})
    assert TABLE.microseconds(mixed, BASELINE, SHAPES) == round(1000 - 2 * 2 - 179.5)
    unknown = AttentionPlan.of({"encoder_self": of("reduced_key", key_dim=2), "decoder_self": OURS})
    assert TABLE.microseconds(unknown, BASELINE, SHAPES) is None
    assert TABLE.knows([("encoder_self", SHARED), ("decoder_self", OURS)])
    assert not TABLE.knows([("encoder_decoder", OURS)])


def test_models_are_compared_with_what_the_baseline_took_beside_them() -> None:
    """Though the machine was half as fast when they were timed."""
    mixed = AttentionPlan.of({"encoder_self": SHARED, "decoder_self": OURS})
    table = TABLE.with_models({BASELINE: 2000.0, mixed: 1992.0}, BASELINE)
    assert table.models == {BASELINE.digest: 1000.0, mixed.digest: 996.0}


def test_records_keep_tables(tmp_path: Path) -> None:
    objectives = Objectives(metric="nll_loss", maximise=False, costs=("total",), limits={})
    store = TrialStore("small", open_storage(None, tmp_path), objectives, create=True)
    assert decoding_table(store) is None
    keep_decoding_table(store, TABLE)
    assert decoding_table(store) == TABLE
