"""Architectures: names, plans from flags and files, and parameter totals to the unit."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

import fairseq_plugin  # noqa: F401  registers the architectures
from nas_attn.attention import SCHEMES
from nas_attn.attention.counting import count_model
from nas_attn.errors import PlanError
from nas_attn.fairseq_tools.arguments import parse_arguments
from nas_attn.fairseq_tools.models import (
    Sizer,
    blank_dictionary,
    build_on_meta,
    count_architecture,
    parse_architecture,
)
from nas_attn.plan import AttentionChoice, AttentionPlan
from tests.helpers.architectures import TINY, TINY_LM, TINY_ROBERTA


@pytest.mark.parametrize("scheme", SCHEMES)
def test_names(scheme: str) -> None:
    for size in (
        "transformer",
        "transformer_iwslt_de_en",
        "transformer_wmt_en_de",
        "transformer_vaswani_wmt_en_de_big",
        "transformer_lm",
        "transformer_lm_gpt2_small",
        "roberta",
        "roberta_base",
        "roberta_large",
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
        ("reduced_key", ["--key-dim=256"], 56_187_904),
        ("reduced_key", ["--key-dim=128"], 53_824_000),
        ("reduced_key", ["--key-dim=64"], 52_642_048),
        ("head_embedding_add", [], 48_532_864),
        ("head_embedding_mul", [], 48_532_864),
    ],
)
def test_totals_of_the_base_model(arch: str, flags: list[str], total: int) -> None:
    name = f"{arch}_transformer_wmt_en_de"
    size = count_architecture(name, 32768, None, ["--share-all-embeddings", *flags])
    assert size.total == total
    assert size.non_embedding == total - 32768 * 512


@pytest.mark.parametrize(
    ("dim", "total"),
    [(512, 60_940_288), (256, 56_200_192), (128, 53_830_144), (64, 52_645_120)],
)
def test_totals_with_collaborative_encoders_only(dim: int, total: int) -> None:
    """The rest keeps its heads, with keys as narrow."""
    plan = AttentionPlan.of({"encoder_self": AttentionChoice.of("collaborative", shared_dim=dim)})
    flags = ["--share-all-embeddings", f"--key-dim={dim}", f"--attention-plan={plan.dumps()}"]
    size = count_architecture("reduced_key_transformer_wmt_en_de", 32768, None, flags)
    assert size.total == total


@pytest.mark.parametrize(
    ("arch", "total"),
    [
        ("multi_head_transformer_iwslt_de_en", 39_469_056),
        ("multi_head_transformer", 52_064_256),
        ("head_embedding_add_transformer_iwslt_de_en", 28_859_136),
        ("head_embedding_mul_transformer", 39_681_408),
    ],
)
def test_totals_with_the_iwslt_dictionaries(arch: str, total: int) -> None:
    size = count_architecture(arch, 8848, 6632, ["--share-decoder-input-output-embed"])
    assert size.total == total


def test_effective_parameters_of_a_model() -> None:
    size = count_architecture(
        "head_embedding_add_transformer_wmt_en_de", 32768, None, ["--share-all-embeddings"]
    )
    assert size.total - size.effective == 18 * (362_688 - 353_280)


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


def build(arch: str, flags: list[str]) -> Any:
    """A model with weights, and a dictionary of 30 types."""
    args = parse_architecture(arch, flags)
    dictionary = blank_dictionary(30)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    torch.manual_seed(1)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, task)


def test_our_roberta_is_fairseqs() -> None:
    """The same weights give the same features, predictions and classes."""
    ours = build("multi_head_roberta", [*TINY_ROBERTA, "--dropout=0"]).eval()
    args = parse_arguments("roberta", ["--task=masked_lm", *TINY_ROBERTA, "--dropout=0"])
    task = SimpleNamespace(source_dictionary=blank_dictionary(30))
    stock = ARCH_MODEL_REGISTRY["roberta"].build_model(args, task).eval()
    for model in (ours, stock):
        model.register_classification_head("classes", num_classes=3)
    state = {name.replace(".attention.", "."): p for name, p in ours.state_dict().items()}
    stock.load_state_dict(state)
    tokens = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 2, 1, 1]])
    for arguments in ({}, {"classification_head_name": "classes"}):
        with torch.no_grad():
            expected, found = (model(tokens, **arguments)[0] for model in (stock, ours))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not ours.encoder.sentence_encoder.layers[0].self_attn.attention.q_proj.bias.any()


@pytest.mark.parametrize("flag", ["--mha-heads-to-keep=2", "--mha-reg-scale-factor=0.1"])
def test_fairseqs_own_head_pruning_is_refused(flag: str) -> None:
    with pytest.raises(PlanError, match="prune stock heads only"):
        build("multi_query_roberta", [*TINY_ROBERTA, flag])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_alignment_weights_of_every_scheme(scheme: str) -> None:
    """--print-alignment and alignment heads ask the decoder for cross-attention weights."""
    model = build(f"{scheme}_transformer", TINY).eval()
    source = torch.tensor([[5, 6, 7, 2], [1, 8, 9, 2]])
    _, extra = model(source, torch.tensor([4, 3]), source[:, 1:], alignment_layer=1)
    (weights,) = extra["attn"]
    assert weights.shape == (2, 3, 4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))
    assert not weights[1, :, 0].any()  # padding


def test_scripting_is_refused_with_a_word_on_what_to_do() -> None:
    model = build("multi_head_transformer", TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(NotImplementedError, match="does not support TorchScript"):
            torch.jit.script(model)


def test_a_decoder_that_does_not_see_the_source_is_refused() -> None:
    kept = parse_architecture("none_transformer", [*TINY, "--output-bias"])
    plan = dict(AttentionPlan.parse(kept.attention_plan))
    assert plan["encoder_decoder"] == (AttentionChoice("multi_head"),)
    assert plan["encoder_self"] == (AttentionChoice.of("none", output_bias=True),)
    blind = AttentionPlan.of({"encoder_decoder": [AttentionChoice("none")] * 3})
    with pytest.raises(ValueError, match="encoder_decoder is none in every layer, so that"):
        parse_architecture("multi_head_transformer", [*TINY, "--attention-plan", blind.dumps()])


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


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("family", "flags"), [("transformer", TINY), ("transformer_lm", TINY_LM), ("roberta", [])]
)
def test_sizes_by_addition_equal_built_models_of_every_scheme(
    scheme: str, family: str, flags: list[str]
) -> None:
    flags = flags or TINY_ROBERTA
    args = parse_architecture(f"multi_head_{family}", flags)
    sizer = Sizer.of(args, [blank_dictionary(50)])
    plan = AttentionPlan.uniform(AttentionChoice(scheme), tuple(sizer.shapes))
    if plan.source_fault():  # its architecture of translation attends to the source all the same
        plan = AttentionPlan.uniform(AttentionChoice("multi_head"), ("encoder_decoder",)).over(plan)
    expected = count_architecture(f"{scheme}_{family}", 50, None, flags)
    assert sizer.size(plan) == expected


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
    with pytest.raises(ValueError, match=message):
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


@pytest.mark.parametrize("scheme", SCHEMES)
def test_activation_checkpointing_gives_the_same_output_and_gradients(scheme: str) -> None:
    source = torch.tensor([[5, 6, 7, 2]])
    results = []
    for flags in ([], ["--checkpoint-activations"]):
        model = build(f"{scheme}_transformer", [*TINY, "--dropout=0", *flags])
        output, _ = model(source, torch.tensor([4]), source)
        output.square().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        results.append([output, *gradients])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_layer_drop(scheme: str) -> None:
    """A dropped layer is left out in training and kept in evaluation."""
    model = build(f"{scheme}_roberta", [*TINY_ROBERTA, "--dropout=0", "--encoder-layerdrop=1"])
    tokens = torch.tensor([[0, 5, 6, 7, 2]])
    layer = model.encoder.sentence_encoder.layers
    calls = []
    for module in layer.children():
        module.register_forward_hook(lambda *_: calls.append(1))
    model.train()(tokens)
    assert not calls
    model.eval()(tokens)
    assert len(calls) == 2
