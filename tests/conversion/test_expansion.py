"""Schemes written out as multi-head attention compute the same, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nas_attn.attention import Attention, build_attention
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.conversion import convert_attention
from nas_attn.conversion.expansion import expand
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice

WIDTH, HEADS, HEAD = 16, 4, 4
EXACT: list[tuple[str, dict[str, Any]]] = [
    ("multi_head", {}),
    ("grouped_query", {"num_groups": 2}),
    ("multi_query", {}),
    ("single_head", {}),
    ("single_head", {"narrow_output": True}),
    ("reduced_key", {"key_dim": 8}),
    ("shared_key_value", {}),
    ("head_embedding_add", {}),
    ("head_embedding_mul", {}),
    ("grouped_head", {"kept_heads": 2}),
    ("collaborative", {"shared_dim": HEAD}),
    ("collaborative", {"shared_dim": HEAD - 1, "content_bias": True}),
    ("collaborative", {"shared_dim": 2, "num_value_heads": 2, "dim_threshold": 0.1}),
    ("collaborative", {"shared_dim": WIDTH, "mixing_init": "heads"}),
]


def random_module(scheme: str, kdim: int = WIDTH, **options: Any) -> Attention:
    torch.manual_seed(3)
    module = build_attention(scheme, WIDTH, HEADS, kdim=kdim, vdim=kdim, dropout=0.1, **options)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "mixing" not in name:
                parameter.normal_()
    return module.double().eval()


def outputs(module: Attention, kdim: int) -> torch.Tensor:
    torch.manual_seed(5)
    query = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    key = torch.randn(2, 7, kdim, dtype=torch.float64)
    padding = torch.arange(7) >= torch.tensor([[7], [4]])
    with torch.no_grad():
        return module(query, key, key, key_padding_mask=padding, need_weights=False)[0]


@pytest.mark.parametrize("kdim", [WIDTH, 24])
@pytest.mark.parametrize(("scheme", "options"), EXACT, ids=str)
def test_it_computes_the_same(scheme: str, options: dict[str, Any], kdim: int) -> None:
    module = random_module(scheme, kdim, **options)
    made = expand(module)
    assert (outputs(made, kdim) - outputs(module, kdim)).abs().max() < 1e-10
    widths = {"q_proj": WIDTH, "k_proj": kdim, "v_proj": kdim, "out_proj": WIDTH}
    for name, width in widths.items():
        assert getattr(made, name).weight.shape == (WIDTH, width)
        assert getattr(made, name).bias is not None
    assert (made.num_heads, made.dropout, made.training) == (HEADS, 0.1, False)


def test_masked_heads_do_nothing() -> None:
    module = random_module("grouped_head", keep="pillars")
    assert isinstance(module, GroupedHeadAttention)
    module.kept[1] = 0
    module._look_at_mask()
    made = expand(module)
    assert (outputs(made, WIDTH) - outputs(module, WIDTH)).abs().max() < 1e-10


def test_weights_that_heads_share_are_copied_to_the_last_bit() -> None:
    """By which CTranslate2's keys and values find each other again."""
    made = expand(random_module("multi_query").float())
    keys = made.k_proj.weight.view(HEADS, HEAD, WIDTH)
    assert made.k_proj.weight.dtype == torch.float32
    assert bool((keys == keys[:1]).all())


def test_wider_shared_spaces_are_exact_where_heads_use_few_dimensions() -> None:
    """Of heads that were trained apart, in single precision as a checkpoint has them."""
    trained = random_module("multi_head").float()
    choice = AttentionChoice.of("collaborative", shared_dim=WIDTH)
    shared = convert_attention(trained, choice).module
    made = expand(shared)
    difference = outputs(made.double(), WIDTH) - outputs(shared.double(), WIDTH)
    assert difference.abs().max() < 1e-5


def test_heads_that_compare_in_more_dimensions_are_refused() -> None:
    for scheme, options, needed in (
        ("collaborative", {"shared_dim": HEAD + 1}, HEAD + 1),
        ("collaborative", {"shared_dim": HEAD, "content_bias": True}, HEAD + 1),
        ("reduced_key", {"key_dim": 2 * WIDTH}, 2 * HEAD),
    ):
        said = f"scores of head 0 have {needed} dimensions, and a head of multi-head attention"
        with pytest.raises(PlanError, match=said):
            expand(random_module(scheme, **options))
