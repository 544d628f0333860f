"""Architectures: names, plans from flags and files, and parameter totals to the unit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

import fairseq_plugin  # noqa: F401  registers the architectures
from nas_attn.attention import SCHEMES
from nas_attn.attention.counting import count_model
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.training.arguments import parse_arguments
from nas_attn.training.model import (
    Sizer,
    blank_dictionary,
    build_on_meta,
    count_architecture,
)

TINY = [
    "--encoder-layers=2", "--decoder-layers=3", "--encoder-embed-dim=16", "--decoder-embed-dim=16",
    "--encoder-ffn-embed-dim=8", "--decoder-ffn-embed-dim=8", "--encoder-attention-heads=4",
    "--decoder-attention-heads=4",
]  # fmt: skip
TINY_LM = [flag for flag in TINY if "encoder" not in flag]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_names(scheme: str) -> None:
    for size in (
        "transformer",
        "transformer_iwslt_de_en",
        "transformer_wmt_en_de",
        "transformer_vaswani_wmt_en_de_big",
        "transformer_lm",
        "transformer_lm_gpt2_small",
    ):
        assert f"{scheme}_{size}" in ARCH_CONFIG_REGISTRY
        assert ARCH_MODEL_REGISTRY[f"{scheme}_{size}"].scheme == scheme


@pytest.mark.parametrize(
    ("arch", "flags", "total"),
    [
        ("multi_head", [], 60_915_712),
        ("collaborative", ["--shared-dim=512"], 60_989_440),
        ("collaborative", ["--shared-dim=256"], 56_224_768),
        ("collaborative", ["--shared-dim=128"], 53_842_432),
        ("collaborative", ["--shared-dim=64"], 52_651_264),
        ("collaborative", ["--shared-dim=512", "--content-bias"], 61_044_736),
        ("collaborative", ["--shared-dim=256", "--content-bias"], 56_289_280),
        ("collaborative", ["--shared-dim=128", "--content-bias"], 53_911_552),
        ("collaborative", ["--shared-dim=64", "--content-bias"], 52_722_688),
    ],
)
def test_totals_of_the_base_model(arch: str, flags: list[str], total: int) -> None:
    name = f"{arch}_transformer_wmt_en_de"
    size = count_architecture(name, 32768, None, ["--share-all-embeddings", *flags])
    assert size.total == total
    assert size.non_embedding == total - 32768 * 512


def test_totals_of_the_iwslt_model() -> None:
    size = count_architecture(
        "multi_head_transformer_iwslt_de_en", 8848, 6632, ["--share-decoder-input-output-embed"]
    )
    assert size.total == 39_469_056


def test_our_baseline_counts_as_fairseq_counts() -> None:
    for arch, flags in (("transformer", TINY), ("transformer_lm", TINY_LM)):
        sizes = []
        for name in (arch, f"multi_head_{arch}"):
            args = parse_arguments(name, flags)
            if arch == "transformer_lm":
                ARCH_CONFIG_REGISTRY["multi_head_transformer_lm"](args)
            model = build_on_meta(args, [blank_dictionary(50)])
            sizes.append(sum(p.numel() for p in set(model.parameters())))
        assert sizes[0] == sizes[1]


def test_a_plan_reaches_every_site_and_layer(tmp_path: Path) -> None:
    plan = {
        "encoder_self": [{"scheme": "collaborative", "shared_dim": 3}, "multi_head"],
        "encoder_decoder": {"scheme": "collaborative", "shared_dim": 5, "content_bias": True},
    }
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan))
    args = parse_arguments(
        "collaborative_transformer", [*TINY, f"--attention-plan={file}", "--shared-dim=2"]
    )
    file.unlink()  # the arguments, and so the checkpoint, hold the plan itself
    model = build_on_meta(args, [blank_dictionary(50)])
    encoder = [layer.self_attn.attention for layer in model.encoder.layers]
    assert [type(attention).__name__ for attention in encoder] == [
        "CollaborativeAttention", "MultiHeadAttention",
    ]  # fmt: skip
    assert encoder[0].shared_dim == 3
    assert [layer.self_attn.attention.shared_dim for layer in model.decoder.layers] == [2, 2, 2]
    assert all(layer.encoder_attn.attention.content_bias for layer in model.decoder.layers)
    stored = AttentionPlan.parse(args.attention_plan)
    assert dict(stored.sites)["decoder_self"] == (
        AttentionChoice.of("collaborative", shared_dim=2),
    )


def test_sizes_by_addition_equal_built_models() -> None:
    args = parse_arguments("multi_head_transformer", TINY)
    dictionaries = [blank_dictionary(50), blank_dictionary(70)]
    sizer = Sizer.of(args, dictionaries)
    plan = AttentionPlan.of(
        {
            "encoder_self": [
                AttentionChoice("multi_head"),
                AttentionChoice.of("collaborative", shared_dim=7),
            ],
            "decoder_self": AttentionChoice.of("collaborative", shared_dim=2, content_bias=True),
            "encoder_decoder": AttentionChoice("multi_head"),
        }
    )
    args.attention_plan = plan.dumps()
    assert sizer.size(plan) == count_model(build_on_meta(args, dictionaries))


def test_sizes_with_another_encoder_width() -> None:
    flags = [f for f in TINY if "encoder-embed-dim" not in f] + ["--encoder-embed-dim=24"]
    args = parse_arguments("multi_head_transformer", flags)
    dictionaries = [blank_dictionary(50), blank_dictionary(70)]
    sizer = Sizer.of(args, dictionaries)
    plan = AttentionPlan.uniform(AttentionChoice.of("collaborative", shared_dim=4))
    args.attention_plan = plan.dumps()
    assert sizer.size(plan) == count_model(build_on_meta(args, dictionaries))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ('{"encoder_self": {"scheme": "collaborative", "shared_dim": 0}}', "at least 1"),
        (
            '{"encoder_self": ["multi_head", "multi_head", "collaborative"]}',
            "3 choices given for 2",
        ),
        ('{"encoder": "multi_head"}', "unknown site 'encoder'"),
        ('{"encoder_self": "multihead"}', "unknown scheme 'multihead'"),
        ("nowhere.json", "nowhere.json: No such file"),
        ("{", "plan is not JSON"),
    ],
)
def test_bad_plans_are_refused(plan: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        args = parse_arguments("multi_head_transformer", [*TINY, f"--attention-plan={plan}"])
        build_on_meta(args, [blank_dictionary(50)])


def test_a_language_model_has_one_site() -> None:
    with pytest.raises(PlanError, match="names encoder_self, which this model lacks"):
        parse_arguments(
            "multi_head_transformer_lm",
            [*TINY_LM, '--attention-plan={"encoder_self": "multi_head"}'],
        )


def test_quantisation_noise_is_refused() -> None:
    args = parse_arguments("multi_head_transformer", [*TINY, "--quant-noise-pq=0.1"])
    with pytest.raises(PlanError, match="quant-noise"):
        build_on_meta(args, [blank_dictionary(50)])


def test_activation_checkpointing_gives_the_same_output() -> None:
    dictionary = blank_dictionary(30)
    source = torch.tensor([[5, 6, 7, 2]])
    outputs = []
    for flags in ([], ["--checkpoint-activations"]):
        args = parse_arguments("collaborative_transformer", [*TINY, "--dropout=0", *flags])
        task = type("Task", (), {"source_dictionary": dictionary, "target_dictionary": dictionary})
        torch.manual_seed(1)
        model = ARCH_MODEL_REGISTRY["collaborative_transformer"].build_model(args, task)
        output, _ = model(source, torch.tensor([4]), source)
        output.sum().backward()
        outputs.append(output)
    assert torch.equal(*outputs)
