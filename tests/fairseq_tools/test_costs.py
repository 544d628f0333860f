"""Costs known before training: hand formulas to the unit, and whole models as torch counts them."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from fairseq.modules import SinusoidalPositionalEmbedding
from torch.utils.flop_counter import FlopCounterMode

from nas_attn.attention import SCHEMES, Attention, build_attention
from nas_attn.engine.plan_costs import expected_costs
from nas_attn.errors import PlanError
from nas_attn.fairseq_tools.costs import (
    KNOWN_COSTS,
    MEASURED_COSTS,
    CostModel,
    available_costs,
    count_choice_flops,
)
from nas_attn.fairseq_tools.models import (
    _no_positions_computed,
    blank_dictionary,
    build_model,
    build_on_meta,
    parse_architecture,
)
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape

DEPTH = len(SCHEMES)
EVERY = [AttentionChoice(scheme) for scheme in SCHEMES]
OTHERS = [
    AttentionChoice.of("collaborative", shared_dim=5, content_bias=True, num_value_heads=2),
    AttentionChoice.of("grouped_query", num_groups=1),
    AttentionChoice.of("grouped_head", kept_heads=1),
    AttentionChoice.of("single_head", narrow_output=True),
    AttentionChoice.of("head_embedding_mul", plain_embedding=True),
    AttentionChoice.of("reduced_key", key_dim=20),
    AttentionChoice.of("reduced_key", key_dim=4),
    AttentionChoice.of("latent", latent_dim=5),
    AttentionChoice.of("collaborative", shared_dim=40),
    AttentionChoice("multi_query"),
    AttentionChoice("head_embedding_add"),
    AttentionChoice.of("grouped_query", num_groups=4, num_value_groups=2),
    AttentionChoice.of("grouped_query", num_groups=2, tied=True),
    AttentionChoice.of("none", output_bias=True),
][: len(SCHEMES)]
ENCODER = [
    f"--encoder-layers={DEPTH}", "--encoder-embed-dim=24", "--encoder-ffn-embed-dim=40",
    "--encoder-attention-heads=4",
]  # fmt: skip
DECODER = [
    f"--decoder-layers={DEPTH}", "--decoder-embed-dim=16", "--decoder-ffn-embed-dim=48",
    "--decoder-attention-heads=4",
]  # fmt: skip
FLAGS = {
    "transformer": [*ENCODER, *DECODER],
    "transformer_lm": DECODER,
    "roberta": [*ENCODER, "--max-positions=64", "--tokens-per-sample=64"],
}
SITES = {
    "transformer": ("encoder_self", "decoder_self", "encoder_decoder"),
    "transformer_lm": ("decoder_self",),
    "roberta": ("encoder_self",),
}


def dictionaries(family: str) -> list[object]:
    sizes = [50, 70] if family == "transformer" else [50]
    return [blank_dictionary(size) for size in sizes]


def cost_model(family: str, *flags: str, length: int = 25) -> CostModel:
    args = parse_architecture(f"multi_head_{family}", [*FLAGS[family], *flags])
    return CostModel.of(args, dictionaries(family), sentence_length=length)


def count_built(family: str, plan: AttentionPlan, *flags: str, length: int = 25) -> int:
    """What torch counts over the model that fairseq builds, all attention in plain products."""
    args = parse_architecture(f"multi_head_{family}", [*FLAGS[family], *flags])
    args.attention_plan = plan.dumps()
    model = build_model(args, dictionaries(family)).eval()
    for module in model.modules():
        if isinstance(module, Attention):
            module.implementation = "explicit"
    tokens = torch.arange(4, 4 + length)[None] % 50
    inputs = {"src_tokens": tokens}
    if family == "transformer":
        inputs |= {"src_lengths": torch.tensor([length]), "prev_output_tokens": tokens}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return int(counter.get_total_flops())


def plans(family: str) -> list[AttentionPlan]:
    """Every scheme at every site, with its default options and with others."""
    sites = SITES[family]
    return [
        AttentionPlan.of(
            {site: row[turn:] + row[:turn] for turn, site in enumerate(sites, start=start)}
        )
        for start, row in enumerate((EVERY, OTHERS, EVERY[::-1]))
    ]


@pytest.mark.parametrize("family", FLAGS)
def test_flops_by_addition_equal_those_of_built_models(family: str) -> None:
    model = cost_model(family, length=11)
    for plan in plans(family):
        assert model.known(plan)["flops"] == count_built(family, plan, length=11)


def test_flops_where_decoders_look_at_the_encoder_themselves() -> None:
    flags = ["--encoder-embed-dim=16", "--cross-self-attention", "--no-cross-attention"]
    plan = AttentionPlan.of({"encoder_self": EVERY, "decoder_self": EVERY[::-1]})
    found = cost_model("transformer", *flags).flops(plan)
    assert found == count_built("transformer", plan, *flags)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_flops_of_a_module_without_storage_equal_those_of_a_real_one(scheme: str) -> None:
    shape = SiteShape(num_layers=1, embed_dim=16, num_heads=4, kdim=12)
    module = build_attention(scheme, 16, 4, kdim=12, vdim=12).eval()
    module.implementation = "explicit"
    query, source = torch.randn(1, 5, 16), torch.randn(1, 7, 12)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(query, source, source, need_weights=False)
    assert count_choice_flops(AttentionChoice(scheme), shape, 5, 7) == counter.get_total_flops()


def test_flops_of_multi_head_attention_by_hand() -> None:
    def found(kdim: int | None = None) -> int:
        shape = SiteShape(num_layers=6, embed_dim=512, num_heads=8, kdim=kdim)
        return count_choice_flops(AttentionChoice("multi_head"), shape, t, s)

    t, s, d = 25, 30, 512
    of_queries_and_outputs, of_scores_and_values = 2 * (2 * t * d * d), 2 * (2 * t * s * d)
    rest = of_queries_and_outputs + of_scores_and_values
    assert found() == rest + 2 * (2 * s * d * d) == 59_207_680
    assert found(kdim=256) == rest + 2 * (2 * s * 256 * d) == 43_479_040


def test_flops_of_a_whole_transformer_by_hand() -> None:
    t, d, f, vocabulary = 25, 512, 2048, 70
    dictionaries = [blank_dictionary(50), blank_dictionary(vocabulary)]
    model = CostModel.of(parse_architecture("multi_head_transformer", []), dictionaries)
    plan = AttentionPlan.uniform(AttentionChoice("multi_head"))
    attention = 8 * t * d * d + 4 * t * t * d
    feed_forward = 2 * (2 * t * d * f)
    assert model.rest_flops == 12 * feed_forward + 2 * t * d * vocabulary
    assert model.flops(plan) == model.rest_flops + 18 * attention


def test_all_costs_of_a_plan() -> None:
    model = cost_model("transformer")
    plan = AttentionPlan.of(
        {"encoder_self": EVERY, "decoder_self": EVERY[::-1], "encoder_decoder": EVERY[0]}
    )
    costs = model.known(plan)
    assert tuple(costs) == KNOWN_COSTS
    assert {name: costs[name] for name in KNOWN_COSTS[:4]} == model.sizer.size(plan)._asdict()
    kept = sum(build_attention(scheme, 16, 4).cache_size() for scheme in SCHEMES)
    of_source = build_attention(EVERY[0].scheme, 16, 4).cache_size() * len(EVERY)
    assert costs["cache_bytes"] == 4 * kept
    assert costs["source_cache_bytes"] == 4 * of_source
    args = parse_architecture("multi_head_transformer", FLAGS["transformer"])
    half = CostModel.of(args, dictionaries("transformer"), bytes_per_number=2)
    halves = {"cache_bytes": 2 * kept, "source_cache_bytes": 2 * of_source}
    assert half.known(plan) == {**costs, **halves}


def test_costs_do_not_depend_on_the_plan_that_the_model_was_measured_with() -> None:
    args = parse_architecture("collaborative_transformer", FLAGS["transformer"])
    other = CostModel.of(args, dictionaries("transformer"))
    assert other == cost_model("transformer")


def test_costs_after_pruning() -> None:
    model = cost_model("transformer_lm")
    pruned = AttentionChoice.of("grouped_head", num_groups=2, keep="pillars")
    costs, certain = expected_costs(model, AttentionPlan.of({"decoder_self": pruned}))
    left = AttentionChoice.of("grouped_head", num_groups=2, kept_heads=2)
    assert certain
    assert costs == model.known(AttentionPlan.of({"decoder_self": left}))


def test_encoders_have_no_cache() -> None:
    model = cost_model("roberta")
    plan = AttentionPlan.of({"encoder_self": EVERY})
    assert "cache_bytes" not in model.known(plan)
    with pytest.raises(PlanError, match="without a decoder"):
        model.cache_bytes(plan)


def test_which_costs_there_are() -> None:
    assert available_costs("translation") == KNOWN_COSTS + MEASURED_COSTS
    without_source = tuple(name for name in KNOWN_COSTS if name != "source_cache_bytes")
    assert available_costs("language_modeling") == (*without_source, "peak_memory")
    for family, task in (("transformer_lm", "language_modeling"), ("roberta", "masked_lm")):
        known = cost_model(family).known(AttentionPlan.uniform(EVERY[0], SITES[family]))
        assert (*known, "peak_memory") == available_costs(task)


def test_sentences_are_no_longer_than_the_model_takes() -> None:
    flags = ["--max-positions=9", "--tokens-per-sample=9"]
    short = cost_model("roberta", *flags)
    assert short.sentence_length == 9
    plan = AttentionPlan.of({"encoder_self": EVERY})
    assert short.flops(plan) == cost_model("roberta", length=9).flops(plan)


def test_measuring_draws_no_random_numbers() -> None:
    torch.manual_seed(1)
    cost_model("roberta")
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)


def test_costs_are_cheap() -> None:
    model = cost_model("transformer")
    plan = AttentionPlan.of(
        {"encoder_self": EVERY, "decoder_self": EVERY, "encoder_decoder": EVERY}
    )
    model.known(plan)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        model.known(plan)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.005


def test_models_on_meta_leave_positions_to_others() -> None:
    """Threads that come and go in any order; a table that is wanted is computed meanwhile."""
    args = parse_architecture("multi_head_transformer_iwslt_de_en", ())
    words = blank_dictionary(10)
    wanted = SinusoidalPositionalEmbedding.get_embedding(9, 8, 1).clone()
    assert bool(wanted.isfinite().all())
    inside, leave = threading.Barrier(3), [threading.Event(), threading.Event()]

    def build(number: int) -> None:
        with torch.device("meta"), _no_positions_computed():
            blank = SinusoidalPositionalEmbedding.get_embedding(9, 8, 1)
            assert blank.is_meta and blank.shape == wanted.shape
            inside.wait(60)
            leave[number].wait(60)

    threads = [threading.Thread(target=build, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(60)
    for thread, event in zip(threads, leave, strict=True):
        assert torch.equal(SinusoidalPositionalEmbedding.get_embedding(9, 8, 1), wanted)
        event.set()  # the first that came leaves first, with the other still there
        thread.join()
    assert torch.equal(SinusoidalPositionalEmbedding.get_embedding(9, 8, 1), wanted)
    assert build_on_meta(args, [words, words]).encoder.embed_positions.weights.is_meta
    assert torch.equal(SinusoidalPositionalEmbedding.get_embedding(9, 8, 1), wanted)
