"""A scheme is added by the steps of CONTRIBUTING.md, and nothing else has to change.

What follows from the registry: flags and architectures, counting, the contract of all schemes, and
that what has no writer is left out of conversions in words.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Unpack

import pytest
from fairseq import models
from torch import Tensor

from fairseq_plugin.architectures import register_scheme
from nas_attn.attention import SCHEMES, Attention, Scheme
from nas_attn.attention.base import (
    CommonArguments,
    Projection,
    init_as_multi_head,
    init_output,
    split_heads,
)
from nas_attn.attention.counting import build_on_meta, count_choice, count_model
from nas_attn.attention.effective import product_dimension
from nas_attn.conversion import convert_attention, inherits
from nas_attn.engine.sensitivity import single_changes
from nas_attn.errors import PlanError
from nas_attn.fairseq_tools.models import count_architecture
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape
from nas_attn.space import SearchSpace, SpaceConfig
from tests.helpers.attention import make
from tests.helpers.naive_attention import NAIVE, apply, reduced_key_score

WIDTH, HEADS = 16, 4


# Step 1: a file in nas_attn/attention/ with the module and its options.
@dataclass(frozen=True, kw_only=True)
class FewValuesOptions:
    value_heads: int = field(default=1, metadata={"help": "heads of values; one by default"})


class FewValuesAttention(Attention):
    """Queries and keys of every head's own, and values that groups of heads share."""

    reference = "made up for this test"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        value_heads: int = 1,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(embed_dim, num_heads, **common)
        if value_heads < 1 or num_heads % value_heads:
            raise PlanError(f"value_heads must divide {num_heads} heads, but is {value_heads}")
        self.value_heads = value_heads
        self.k_proj = Projection(self.kdim, embed_dim, bias=self.has_bias)
        self.v_proj = Projection(self.vdim, value_heads * self.head_dim, bias=self.has_bias)
        self.q_proj = Projection(embed_dim, embed_dim, bias=self.has_bias)
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            init_as_multi_head(projection, embed_dim, one_matrix=False)
        init_output(self.out_proj)

    def queries(self, query: Tensor) -> Tensor:
        return split_heads(self.q_proj(query), self.num_heads)

    def keys(self, key: Tensor) -> Tensor:
        return split_heads(self.k_proj(key), self.num_heads)

    def values(self, value: Tensor) -> Tensor:
        return split_heads(self.v_proj(value), self.value_heads)

    def cache_size(self) -> int:
        return self.embed_dim + self.value_heads * self.head_dim

    def effective_parameters(self) -> int:
        scores = product_dimension(self.embed_dim + self.has_bias, self.kdim, self.head_dim)
        width = self.num_heads // self.value_heads * self.embed_dim
        outputs = product_dimension(self.vdim, width, self.head_dim)
        return self.num_heads * scores + self.value_heads * outputs + self.embed_dim * self.has_bias


def value(module: Any, y: Tensor, head: int) -> Tensor:
    group = head * module.value_heads // module.num_heads
    return apply(module.v_proj, y, group, module.value_heads)


@pytest.fixture(autouse=True)
def _added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Step 2: a line in nas_attn/attention/registry.py.
    monkeypatch.setitem(SCHEMES, "few_values", Scheme(FewValuesAttention, FewValuesOptions))
    # Step 3: how its paper writes it, for the contract.
    monkeypatch.setitem(NAIVE, "few_values", (reduced_key_score, value))
    registries = [
        models.MODEL_REGISTRY,
        models.ARCH_MODEL_REGISTRY,
        models.ARCH_MODEL_NAME_REGISTRY,
        models.ARCH_MODEL_INV_REGISTRY,
        models.ARCH_CONFIG_REGISTRY,
    ]
    before = [dict(registry) for registry in registries]
    register_scheme("few_values")  # done for all of the registry as the plugin is imported
    yield
    for registry, content in zip(registries, before, strict=True):
        registry.clear()
        registry.update(content)


def every_contract() -> Iterator[Any]:
    """The contract's tests that take a scheme and its options alone."""
    contract = importlib.import_module("tests.attention.test_contract")
    for name, test in vars(contract).items():
        if name.startswith("test_") and "cuda" not in name:
            inner = getattr(test, "hypothesis", None)
            if inner is not None or {*inspect.signature(test).parameters} == {"scheme", "choose"}:
                marks = getattr(test, "pytestmark", [])
                others = [mark for mark in marks if mark.name != "parametrize"]
                yield pytest.param(test, id=name, marks=others)


@pytest.mark.parametrize("test", [*every_contract()])
@pytest.mark.parametrize("options", [{}, {"value_heads": HEADS}], ids=str)
def test_the_contract_holds(test: Any, options: dict[str, int]) -> None:
    def choose(_: int, heads: int) -> dict[str, object]:
        return dict.fromkeys(options, heads)

    test(scheme="few_values", choose=choose)


def test_flags_and_architectures_follow() -> None:
    flags = ["--share-all-embeddings"]
    wide, _, few = (
        count_architecture(f"{scheme}_transformer_iwslt_de_en", 1000, None, [*flags, *more])
        for scheme, more in (
            ("multi_head", []),
            ("few_values", []),
            ("few_values", ["--value-heads=2"]),
        )
    )
    # 18 layers of width 512 with 4 heads: two heads of values less, biases too.
    assert wide.total - few.total == 18 * 2 * 128 * 513
    for family in ("transformer_lm", "roberta"):
        assert f"few_values_{family}" in models.ARCH_MODEL_REGISTRY


def test_counting_follows() -> None:
    choice = AttentionChoice.of("few_values", value_heads=2)
    shape = SiteShape(num_layers=1, embed_dim=WIDTH, num_heads=HEADS)
    module = make("few_values", {"value_heads": 2})
    counted = count_model(module)
    assert count_choice(choice, shape) == (counted.attention, counted.effective)
    assert counted.attention == 3 * (WIDTH * WIDTH + WIDTH) + WIDTH // 2 * (WIDTH + 1)


def test_options_are_checked_in_words() -> None:
    with pytest.raises(PlanError, match="unknown option 'heads'; it has value_heads"):
        make("few_values", {"heads": 2})
    with pytest.raises(PlanError, match="few_values: value_heads must divide 4 heads, but is 3"):
        make("few_values", {"value_heads": 3})


def test_without_a_writer_it_is_left_out_of_conversions_in_words() -> None:
    trained = make("multi_head")
    why = "few_values cannot inherit trained heads: it has no writer in nas_attn.conversion"
    with pytest.raises(PlanError, match=f"{why}.*Train it from scratch"):
        convert_attention(trained, AttentionChoice.of("few_values"))
    with pytest.raises(PlanError, match="cannot take over trained heads: it has no writer"):
        convert_attention(trained, AttentionChoice.of("few_values"), force=True)
    own = make("few_values")
    same = convert_attention(own, AttentionChoice.of("few_values")).module
    assert all((same.state_dict()[name] == kept).all() for name, kept in own.state_dict().items())
    back = convert_attention(own, AttentionChoice.of("multi_head")).module
    assert inherits(back)


def test_predictions_and_warm_starts_leave_it_out() -> None:
    shapes = {"encoder_self": SiteShape(num_layers=2, embed_dim=WIDTH, num_heads=HEADS)}
    # Step 4: an entry in a search space.
    offered = {"multi_head": {}, "few_values": {"value_heads": [1, 2]}, "multi_query": {}}
    config = SpaceConfig.model_validate({"decide": "layer", "schemes": offered})
    space = SearchSpace(config, shapes)
    assert space.size == 4**2

    def can_inherit(plan: AttentionPlan) -> bool:  # as a study asks
        return all(
            inherits(build_on_meta(choice, shapes[site]))
            for site, choices in plan
            for choice in choices
        )

    baseline = AttentionPlan.uniform(AttentionChoice("multi_head"), ("encoder_self",))
    changes = single_changes(space, baseline, can_inherit)
    assert [change.choice for change in changes] == ["multi_query", "multi_query"]
