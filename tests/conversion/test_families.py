"""Models of every family are converted exactly, and generate, train and are saved afterwards."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nas_attn
from benchmarks.model_families import (
    FAMILIES,
    FULL,
    HEADS,
    SHARED,
    TEXT,
    WIDTH,
    Images,
    build,
    converted,
    generated,
    judge,
    outputs,
)
from benchmarks.transformers_sweep import difference, tensors, untrained
from nas_attn.attention import Attention
from nas_attn.conversion import convert_model, load_converted, save_converted
from nas_attn.errors import PlanError, UsageError
from nas_attn.plan import AttentionChoice, AttentionPlan

of = AttentionChoice.of

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers


@pytest.mark.parametrize("name", FAMILIES)
def test_exact_generates_and_comes_back(name: str) -> None:
    row = judge(FAMILIES[name])
    assert row.is_well, row


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_trains_and_returns_weights(name: str) -> None:
    model: Any = build(FAMILIES[name])
    model.set_attn_implementation("eager")
    given = FAMILIES[name].given
    full = converted(model, FULL)
    weights = [
        [t for key, t in m(**given, output_attentions=True).items() if "attentions" in key]
        for m in (model, full)
    ]
    before, after = (list(tensors(found)) for found in weights)
    assert len(before) == sum(isinstance(module, Attention) for module in full.modules())
    assert difference(before, after) < 1e-10
    assert untrained(converted(model, [SHARED]), given) == ""


@pytest.mark.parametrize(
    "choice",
    [
        *map(of, ["collaborative", "shared_key_value", "multi_query", "latent", "none"]),
        of("grouped_query", num_groups=2, num_value_groups=4),
        of("grouped_query", num_groups=4, num_value_groups=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["gpt2", "marian"])
def test_caches_hold_other_schemes(family: str, choice: AttentionChoice) -> None:
    """Static ones too, with as many heads of keys as of values; tokens are counted without keys."""
    # No attention in all of a site is refused.
    choices = [choice, *[of("multi_head")] * (choice.scheme == "none")]
    model = converted(build(FAMILIES[family]), choices)
    ways = ({"use_cache": False}, {"cache_implementation": "static"}, {})
    first, *others = (generated(model, FAMILIES[family], **way).sequences for way in ways)
    assert all(torch.equal(first, other) for other in others)


def test_torch_layers_in_evaluation_use_what_was_put() -> None:
    """Their fused kernels would read weights that are gone, or call no attention at all."""
    model = build(FAMILIES["torch"])
    shared = converted(model, [of("multi_query")])
    given = FAMILIES["torch"].given["src"].double()
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    with torch.no_grad():
        plain = [m(given) for m in (model, shared)]
        padded = shared(given, src_key_padding_mask=padding)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            slow, slow_padded = shared(given), shared(given, src_key_padding_mask=padding)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(plain[1], slow)
    torch.testing.assert_close(padded[~padding], slow_padded[~padding])
    assert float((plain[0] - plain[1]).abs().max()) > 0.01


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_data_help_and_padding_does_not_count(name: str) -> None:
    family, model = FAMILIES[name], build(FAMILIES[name])
    plan = {one: of("multi_query") for one in _sites(model)}
    blind, seeing, other = (copy.deepcopy(model) for _ in range(3))
    convert_model(blind, AttentionPlan.of(plan))
    convert_model(seeing, AttentionPlan.of(plan), lambda m: m(**family.given))
    ids = family.given["input_ids"]
    changed = {**family.given, "input_ids": ids.masked_fill(ids == 0, 50)}
    convert_model(other, AttentionPlan.of(plan), lambda m: m(**changed))
    wanted, first, second, third = (outputs(m, family)[0] for m in (model, blind, seeing, other))
    assert (second - wanted).norm() < (first - wanted).norm()
    torch.testing.assert_close(second, third, rtol=1e-6, atol=1e-6)


def _sites(model: nn.Module) -> list[str]:
    return (
        ["encoder_self", "decoder_self", "encoder_decoder"] if _is_pair(model) else ["decoder_self"]
    )


def _is_pair(model: Any) -> bool:
    return bool(model.config.is_encoder_decoder)


def test_data_token_by_token_are_refused() -> None:
    family, model = FAMILIES["gpt2"], build(FAMILIES["gpt2"])
    with pytest.raises(PlanError, match="calibrate by calls of the model, not of its generate"):
        convert_model(
            model,
            AttentionPlan.of({"decoder_self": of("multi_query")}),
            lambda m: generated(m, family),
        )


REFUSED = {
    "t5": (of("single_head"), "fewer attention maps than its position bias"),
    "llama": (of("collaborative"), "keys are rotated by position"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_schemes_that_do_not_fit_are_refused(name: str) -> None:
    choice, words = REFUSED[name]
    with pytest.raises(PlanError, match=words):
        converted(build(FAMILIES[name]), [choice])


def test_heads_of_another_width_are_refused() -> None:
    import transformers

    config = transformers.LlamaConfig(**TEXT, head_dim=2 * WIDTH // HEADS)
    with pytest.raises(PlanError, match="heads of another width"):
        converted(transformers.LlamaModel(config), [SHARED])


def test_an_unknown_class_is_told_what_an_adapter_is() -> None:
    model = Images()
    model.attention[1].temperature = nn.Parameter(torch.ones(HEADS, 1, 1))
    with pytest.raises(PlanError, match=r"FusedAttention \(attention.1\).*an adapter is an entry"):
        converted(model, [SHARED])


def test_rotated_keys_that_are_multiples_are_shared_exactly() -> None:
    """A pair of dimensions of one head's keys is a complex multiple of the first head's."""
    model: Any = build(FAMILIES["llama"])
    draw = torch.Generator().manual_seed(5)
    for layer in model.model.layers:
        part = layer.self_attn
        keys = part.k_proj.weight.data.view(HEADS, 2, -1, WIDTH)  # heads, halves, pairs
        values = part.v_proj.weight.data.view(HEADS, -1, WIDTH)
        for head in range(1, HEADS):
            real, imaginary = torch.randn(2, keys.size(2), 1, dtype=torch.float64, generator=draw)
            keys[head, 0] = real * keys[0, 0] - imaginary * keys[0, 1]
            keys[head, 1] = imaginary * keys[0, 0] + real * keys[0, 1]
            mixed = torch.randn(len(values[0]), len(values[0]), dtype=torch.float64, generator=draw)
            values[head] = mixed @ values[0]
    shared = converted(model, [of("multi_query")])
    assert difference(outputs(model, FAMILIES["llama"]), outputs(shared, FAMILIES["llama"])) < 1e-6


def test_a_model_that_shares_keys_already_stays_as_it_is(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, num_key_value_heads=2))
    model = model.double().eval()
    for choice in ("multi_head", "grouped_query"):
        same = converted(model, [of(choice)])
        sizes = {module.cache_size() for module in same.modules() if isinstance(module, Attention)}
        assert sizes == {WIDTH}
        assert (
            difference(outputs(model, FAMILIES["llama"]), outputs(same, FAMILIES["llama"])) < 1e-6
        )
        save_converted(same, tmp_path / choice)
        loaded = load_converted(tmp_path / choice)
        assert torch.equal(*(outputs(m, FAMILIES["llama"])[0] for m in (same, loaded)))


def test_a_saved_model_is_data_alone(tmp_path: Path) -> None:
    import transformers

    model = converted(build(FAMILIES["gpt2"]), [SHARED, of("multi_query")])
    nas_attn.save_converted(model, tmp_path / "small")
    assert {path.name for path in (tmp_path / "small").iterdir()} == {
        "config.json", "converted.safetensors", "generation_config.json", "plan.json",
    }  # fmt: skip
    loaded: Any = nas_attn.load_converted(tmp_path / "small")
    assert not loaded.training
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert next(loaded.parameters()).dtype == torch.float64
    with pytest.raises(OSError, match=r"model.safetensors"):
        transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "small", local_files_only=True)


def _changed(folder: Path, **changes: object) -> None:
    path = folder / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_folders_that_are_no_converted_models_are_refused(tmp_path: Path) -> None:
    model = build(FAMILIES["gpt2"])
    with pytest.raises(PlanError, match="the model was not converted"):
        save_converted(model, tmp_path / "none")
    with pytest.raises(UsageError, match=r"plan.json: No such file"):
        load_converted(tmp_path / "none")
    save_converted(converted(model, [SHARED]), tmp_path)
    for name in ("Trainer", "os", "no such", ["GPT2Model"]):
        _changed(tmp_path, **{"class": name})
        with pytest.raises(UsageError, match="is no model of transformers"):
            load_converted(tmp_path)
    _changed(tmp_path, **{"class": "GPT2LMHeadModel", "attn_implementation": "who/kernel"})
    with pytest.raises(UsageError, match="must be eager or sdpa"):
        load_converted(tmp_path)
    plan = AttentionPlan.of({"decoder_self": of("multi_query")})
    _changed(tmp_path, attn_implementation="sdpa", plans={"": plan.to_json()})
    with pytest.raises(UsageError, match=r"is of another model: transformer.h.0.attn"):
        load_converted(tmp_path)


def test_a_model_of_no_library_is_loaded_into_one(tmp_path: Path) -> None:
    model = build(FAMILIES["timm"])
    part = nn.ModuleDict(
        {"images": converted(model, [SHARED]), "head": nn.Linear(WIDTH, 3).double()}
    )
    save_converted(part, tmp_path)
    with pytest.raises(UsageError, match="holds no model of transformers: build"):
        load_converted(tmp_path)
    fresh = nn.ModuleDict({"images": Images(), "head": nn.Linear(WIDTH, 3)})
    load_converted(tmp_path, fresh)
    given: Tensor = FAMILIES["timm"].given["states"].double()
    assert torch.equal(fresh["images"](given), part["images"](given))
    assert torch.equal(fresh["head"].weight, part["head"].weight)


def test_is_exported() -> None:
    model: Any = converted(build(FAMILIES["gpt2"]), [SHARED])
    model.config.use_cache = False
    given = FAMILIES["gpt2"].given
    exported = torch.export.export(model, (), given, strict=False).module()
    found = exported(**given).logits[given["attention_mask"].bool()]
    assert difference(outputs(model, FAMILIES["gpt2"]), [found]) < 1e-12
