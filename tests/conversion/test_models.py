"""Whole models: torch's Transformers and Hugging Face's, with and without padding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas_attn.attention import Attention
from nas_attn.conversion import convert_model
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice, AttentionPlan

WIDTH, HEADS = 32, 4
of = AttentionChoice.of
EXACT = [
    of("multi_head"),
    of("collaborative", shared_dim=WIDTH),
    of("collaborative", shared_dim=WIDTH, content_bias=True),
    of("reduced_key", key_dim=WIDTH),
    of("grouped_query", num_groups=HEADS),
]
TEXT_ONLY = ("vocab_size", "max_position_embeddings")
Run = Callable[[nn.Module], Tensor]

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's nested tensors and transformers


def far_from_the_start(model: nn.Module) -> nn.Module:
    """Weights and biases such as training gives."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name.lower():
                nn.init.normal_(parameter, std=0.2)
            elif name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    return model.eval()


def padded(length: int) -> Tensor:
    """Bool (3, length), true at padding."""
    padding = torch.zeros(3, length, dtype=torch.bool)
    padding[1, length - 3 :] = True
    return padding


def torch_transformer(batch_first: bool) -> tuple[nn.Module, Run]:
    torch.manual_seed(0)
    model = nn.Transformer(
        WIDTH, HEADS, 2, 2, dim_feedforward=24, dropout=0.0, batch_first=batch_first
    )
    source, target = torch.randn(3, 9, WIDTH), torch.randn(3, 7, WIDTH)
    causal = torch.ones(7, 7, dtype=torch.bool).triu(1)

    def run(model: nn.Module) -> Tensor:
        kind = next(model.parameters()).dtype
        inputs = (
            t if batch_first else t.transpose(0, 1) for t in (source.to(kind), target.to(kind))
        )
        out: Tensor = model(
            *inputs,
            tgt_mask=causal,
            src_key_padding_mask=padded(9),
            memory_key_padding_mask=padded(9),
        )
        return out

    return far_from_the_start(model), run


def hugging_face(kind: str) -> tuple[nn.Module, Run]:
    import transformers

    sizes = {
        "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": 2,
        "intermediate_size": 24, "vocab_size": 50, "max_position_embeddings": 20,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "vit":
        config = transformers.ViTConfig(
            image_size=8, patch_size=2, num_channels=1, num_labels=5,
            **{name: size for name, size in sizes.items() if name not in TEXT_ONLY},
        )  # fmt: skip
        pixels = torch.randn(3, 1, 8, 8)
        vit = transformers.ViTForImageClassification(config)
        return far_from_the_start(
            vit
        ), lambda m: m(pixel_values=pixels.to(next(m.parameters()).dtype)).logits
    if kind == "distilbert":
        config = transformers.DistilBertConfig(
            dim=WIDTH, n_heads=HEADS, n_layers=2, hidden_dim=24, vocab_size=50,
            max_position_embeddings=20,
        )  # fmt: skip
        model = transformers.DistilBertForMaskedLM(config)
    elif kind == "roberta":
        model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**sizes))
    else:
        model = transformers.BertForMaskedLM(transformers.BertConfig(**sizes))
    tokens = torch.randint(4, 50, (3, 12))
    return far_from_the_start(
        model
    ), lambda m: m(input_ids=tokens, attention_mask=(~padded(12)).long()).logits


MODELS: dict[str, Callable[[], tuple[nn.Module, Run]]] = {
    "torch": lambda: torch_transformer(True),
    "torch, time first": lambda: torch_transformer(False),
    **{
        kind: lambda kind=kind: hugging_face(kind)  # type: ignore[misc]
        for kind in ("bert", "distilbert", "roberta", "vit")
    },
}


def attention_of(model: nn.Module) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


def outputs(run: Run, *models: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return [run(model) for model in models]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("choice", EXACT, ids=str)
def test_full_width_equals_the_original(kind: str, choice: AttentionChoice) -> None:
    model, run = MODELS[kind]()
    sites = ("encoder_self", "decoder_self", "encoder_decoder")
    plan = AttentionPlan.uniform(choice, sites if kind.startswith("torch") else sites[:1])
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        trained = copy.deepcopy(model).to(dtype)
        converted = copy.deepcopy(trained)
        names = convert_model(converted, plan)
        assert len(names) == (6 if kind.startswith("torch") else 2) == len(attention_of(converted))
        wanted, found = outputs(run, trained, converted)
        assert float((wanted - found).abs().max()) < tolerance * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("kind", MODELS)
def test_data_help(kind: str) -> None:
    model, run = MODELS[kind]()
    plan = AttentionPlan.of(
        {"encoder_self": [of("multi_query"), of("collaborative", shared_dim=12)]}
    )
    blind, seeing = copy.deepcopy(model), copy.deepcopy(model)
    convert_model(blind, plan)
    converted = convert_model(seeing, plan, run)
    wanted, first, second = outputs(run, model, blind, seeing)
    assert (second - wanted).norm() < (first - wanted).norm()
    assert all(module.errors is not None for module in converted)


def test_sites_and_layers_follow_the_model() -> None:
    model, run = torch_transformer(True)
    plan = AttentionPlan.of(
        {
            "decoder_self": [of("multi_query"), of("multi_head")],
            "encoder_decoder": [of("multi_head"), of("grouped_query", num_groups=2)],
        }
    )
    converted = convert_model(model, plan, run)
    schemes = {module.name: module.choice.scheme for module in converted}
    assert schemes == {
        "encoder.layers.0.self_attn": "multi_head",
        "encoder.layers.1.self_attn": "multi_head",
        "decoder.layers.0.self_attn": "multi_query",
        "decoder.layers.0.multihead_attn": "multi_head",
        "decoder.layers.1.self_attn": "multi_head",
        "decoder.layers.1.multihead_attn": "grouped_query",
    }
    loss = run(model.train()).square().mean()
    loss.backward()
    assert all(p.grad is not None for m in attention_of(model) for p in m.parameters())


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(PlanError, match="no attention that is known"):
        convert_model(nn.Linear(3, 3), AttentionPlan.of({"encoder_self": of("multi_query")}))
    model, _ = torch_transformer(True)
    with pytest.raises(PlanError, match="3 choices given for 2 layers"):
        convert_model(
            model, AttentionPlan.of({"encoder_self": [of("multi_query")] * 2 + [of("multi_head")]})
        )
    odd: Any = nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True)
    with pytest.raises(PlanError, match="add_bias_kv"):
        convert_model(nn.Sequential(odd), AttentionPlan.of({"encoder_self": of("multi_query")}))


def test_a_decoder_that_would_not_see_the_source_is_refused() -> None:
    model = nn.Transformer(16, 2, 2, 2, 16, batch_first=True)
    none = of("none")
    with pytest.raises(PlanError, match="the decoder would not see the source"):
        convert_model(model, AttentionPlan.of({"encoder_decoder": none}))
    made = convert_model(model, AttentionPlan.of({"encoder_decoder": [none, of("multi_head")]}))
    assert none in [module.choice for module in made]
