"""Models are converted exactly or refused by class name, and a refused one is as it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.transformers_sweep import build, far_from_the_start, judge
from nas_attn.attention import Attention, build_attention
from nas_attn.conversion import convert_model
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice, AttentionPlan

of = AttentionChoice.of
KEEP = AttentionPlan.of({"encoder_self": of("multi_head")})
WIDTH, HEADS = 32, 4

REFUSED = {
    "Albert": "AlbertAttention", "BigBird": "BigBirdBlockSparseAttention",
    "Canine": "CanineSelfAttention", "Deberta": "DisentangledSelfAttention",
    "Esm": "EsmSelfAttention", "GPTNeoX": "GPTNeoXAttention",
    "LayoutLMv3": "LayoutLMv3SelfAttention",
    "Lilt": "LiltSelfAttention", "Longformer": "LongformerSelfAttention",
    "MobileBert": "MobileBertSelfAttention", "RoFormer": "RoFormerSelfAttention",
    "Segformer": "SegformerAttention", "Siglip": "SiglipAttention", "Swin": "SwinAttention",
    "XLM": "xlm.MultiHeadAttention", "Yolos": "YolosSelfAttention",
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, and of torch's nested tensors


@pytest.mark.parametrize("family", REFUSED)
def test_refused_by_class_name(family: str) -> None:
    verdict = judge(f"{family}Model")
    assert verdict.kind == "refused", verdict
    assert REFUSED[family].rpartition(".")[2] in verdict.words


@pytest.mark.parametrize("family", ["Bert", "Dinov2", "DistilBert", "Vilt"])
def test_exact(family: str) -> None:
    verdict = judge(f"{family}Model")
    assert verdict.kind == "exact", verdict


def test_otherwise_in_one_implementation() -> None:
    """Without a mask, transformers 5 takes this class for a decoder's under sdpa."""
    model = build("LayoutLMModel", "cpu", _attn_implementation="sdpa")
    with pytest.raises(
        PlanError, match=r"LayoutLMSelfAttention\): without a mask it computes some"
    ):
        convert_model(model, KEEP)


def bert(**options: object) -> Any:
    return far_from_the_start(build("BertModel", "cpu", **options))


def of_torch(batch_first: bool = True) -> Any:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, 0.0, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 2).eval()


def tokens(model: nn.Module) -> dict[str, Tensor]:
    ids = torch.randint(4, 100, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def attention(model: Any) -> Any:
    """The first attention module, of BERT or of torch."""
    return model.layers[0].self_attn if hasattr(model, "layers") else bert_attention(model)


def bert_attention(model: Any) -> Any:
    return model.encoder.layer[0].attention.self


class Adapter(nn.Module):
    """A linear module that has another beside it, as adapters wrap them."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.more = base, nn.Linear(base.in_features, base.out_features)

    def forward(self, states: Tensor) -> Tensor:
        return self.base(states) + self.more(states)


class Rotated(nn.MultiheadAttention):
    """torch's attention, made to do something else."""


class Projected(nn.Module):
    """Attention by what it has, not by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Linear(WIDTH, WIDTH) for _ in range(3))


def adapted(model: Any) -> None:
    bert_attention(model).query = Adapter(bert_attention(model).query)


def output_adapted(model: Any) -> None:
    output = model.encoder.layer[0].attention.output
    output.dense = Adapter(output.dense)


def tied(model: Any) -> None:
    model.encoder.layer[1].attention.self.query.weight = bert_attention(model).query.weight


def one_projection(model: Any) -> None:
    bert_attention(model).key = bert_attention(model).query


def replaced(model: Any) -> None:
    attention(model).forward = lambda *_, **__: None


def biased(model: Any) -> None:
    bert_attention(model).distance = nn.Embedding(3, WIDTH)


def hooked(model: Any) -> None:
    attention(model).register_forward_hook(lambda *_: None)


def pruned(model: Any) -> None:
    prune.l1_unstructured(attention(model).key, "weight", 0.5)


def subclassed(model: Any) -> None:
    model.layers[1].self_attn = Rotated(WIDTH, HEADS, batch_first=True)


def mixed(model: Any) -> None:
    model.pooling = Projected()


def ours(model: Any) -> None:
    model.layers[0].self_attn = build_attention("multi_head", WIDTH, HEADS)


def not_finite(model: Any) -> None:
    attention(model).value.weight.data[0, 0] = float("nan")


def parametrised(model: Any) -> None:
    nn.utils.parametrizations.orthogonal(attention(model).query)


ODD: dict[Callable[[Any], None], tuple[Callable[[], Any], str]] = {
    adapted: (bert, "BertSelfAttention.*its query is .*Adapter, not torch.nn.Linear"),
    output_adapted: (bert, "its output.dense is .*Adapter"),
    tied: (bert, "another module shares its weights"),
    one_projection: (bert, "another module shares its"),
    replaced: (of_torch, "MultiheadAttention.*its forward was replaced"),
    biased: (bert, "it has distance.weight, which multi-head"),
    hooked: (of_torch, "hooks that would be lost"),
    pruned: (bert, "hooks that would be lost"),
    subclassed: (of_torch, r"not known here is .*Rotated \(layers.1.self_attn\)"),
    mixed: (of_torch, r"not known here is .*Projected \(pooling\)"),
    ours: (of_torch, "attention of nas-attn already"),
    not_finite: (bert, "weights are not finite"),
    parametrised: (bert, "its query is .*ParametrizedLinear"),
}


def snapshot(model: nn.Module) -> tuple[list[tuple[str, int, bool]], dict[str, Tensor]]:
    modules = [(name, id(module), module.training) for name, module in model.named_modules()]
    return modules, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: Any) -> None:
    after = snapshot(model)
    assert after[0] == before[0]
    assert list(after[1]) == list(before[1])
    for name, tensor in before[1].items():
        torch.testing.assert_close(after[1][name], tensor, rtol=0, atol=0, equal_nan=True)
    assert getattr(model, "use_nested_tensor", True)
    assert "save_pretrained" not in vars(model)


@pytest.mark.parametrize("change", ODD, ids=lambda change: change.__name__)
def test_not_as_its_class_makes_it(change: Callable[[Any], None]) -> None:
    make, words = ODD[change]
    model = make()
    change(model)
    before = snapshot(model)
    with pytest.raises(PlanError, match=words):
        convert_model(model, KEEP)
    assert_untouched(model, before)


HELD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "cross": (
        lambda: build("ErnieModel", "cpu", is_decoder=True, add_cross_attention=True),
        "not known here is .*ErnieCrossAttention",
    ),
    "parallel": (lambda: nn.DataParallel(of_torch()), "DataParallel: convert its .module"),
    "traced": (lambda: torch.fx.symbolic_trace(nn.Linear(2, 2)), "GraphModule.*before it is trac"),
    "compiled": (lambda: torch.compile(of_torch()), "OptimizedModule: convert the model that"),
    "flash": (
        lambda: build("BertModel", "cpu", _attn_implementation="flex_attention"),
        "computes attention by flex_attention",
    ),
    "meta": (lambda: build("BertModel", "meta"), "BertSelfAttention.*on the meta device"),
    "attention itself": (lambda: nn.MultiheadAttention(WIDTH, HEADS), "is itself attention"),
    "zeros added": (
        lambda: nn.Sequential(nn.MultiheadAttention(WIDTH, HEADS, add_zero_attn=True)),
        "add_zero_attn",
    ),
}


@pytest.mark.parametrize("kind", HELD)
def test_held_by_something_else(kind: str) -> None:
    make, words = HELD[kind]
    with pytest.raises(PlanError, match=words):
        convert_model(make(), KEEP)


def test_compiled_in_place() -> None:
    model = of_torch()
    model.layers[0].compile()
    with pytest.raises(PlanError, match=r"layers.0 was compiled"):
        convert_model(model, KEEP)


def test_quantised() -> None:
    linears = {nn.Linear}
    model = torch.ao.quantization.quantize_dynamic(build("BertModel", "cpu"), linears)
    with pytest.raises(PlanError, match=r"its query is torch\.ao\.nn\.quantized"):
        convert_model(model, KEEP)


def test_a_known_class_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a table says of a class, a probe of each module tests."""
    model = bert()
    kind = type(bert_attention(model))
    usual = kind.forward

    def sharper(self: Any, hidden_states: Tensor, attention_mask: Any = None, **more: Any) -> Any:
        output, weights = usual(self, hidden_states, attention_mask, **more)
        return output * 1.001, weights

    monkeypatch.setattr(kind, "forward", sharper)
    before = snapshot(model)
    with pytest.raises(PlanError, match="it computes something else than multi-head attention"):
        convert_model(model, KEEP)
    assert_untouched(model, before)


def test_a_forward_that_takes_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bert()

    def turned(self: Any, hidden_states: Tensor, rotary: Any = None, **more: Any) -> None: ...

    monkeypatch.setattr(type(bert_attention(model)), "forward", turned)
    with pytest.raises(PlanError, match="its forward takes rotary"):
        convert_model(model, KEEP)


REFUSED_PLANS = {
    "of the last layer": {"encoder_self": [of("multi_query"), of("grouped_query", num_groups=3)]},
    "that cannot inherit": {"encoder_self": [of("multi_query"), of("head_embedding_add")]},
    "of another depth": {"encoder_self": [of("multi_query")] * 2 + [of("multi_head")]},
    "of a foreign site": {"encoder_decoder": of("multi_query")},
}


@pytest.mark.parametrize("kind", REFUSED_PLANS)
@pytest.mark.parametrize("make", [bert, of_torch])
def test_a_refused_plan_leaves_the_model_as_it_was(make: Callable[[], Any], kind: str) -> None:
    model = make().train()
    model.get_submodule("layers" if make is of_torch else "embeddings").eval()  # a frozen part
    before = snapshot(model)
    with pytest.raises(PlanError):
        convert_model(model, AttentionPlan.of(REFUSED_PLANS[kind]))
    assert_untouched(model, before)


def test_a_run_that_fails_leaves_the_model_as_it_was() -> None:
    model = of_torch().train()
    before = snapshot(model)

    def run(model: nn.Module) -> None:
        model(torch.zeros(2, 5, WIDTH))
        raise OSError("no more data")

    with pytest.raises(OSError, match="no more data"):
        convert_model(model, KEEP, run)
    assert_untouched(model, before)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_the_data_pass_is_compared_too() -> None:
    """What no probe passes."""
    model = bert()
    before = snapshot(model)

    def run(model: Any) -> None:
        bert_attention(model)(
            torch.zeros(1, 3, WIDTH).double(), position_bias=torch.zeros(1, 1, 3, 3)
        )

    with pytest.raises(PlanError, match=r"BertSelfAttention.*takes no position_bias"):
        convert_model(model, KEEP, run)
    assert_untouched(model, before)


class Stack(nn.Module):
    """Two attention modules, of which torch's give no numbers to queries that see no key."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (
            nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in range(2)
        )

    def forward(self, states: Tensor, padding: Tensor) -> Tensor:
        for module in (self.first, self.second):
            states, _ = module(states, states, states, key_padding_mask=padding)
        return states


@pytest.mark.parametrize("scheme", ["multi_head", "collaborative", "multi_query"])
def test_a_sequence_of_padding_in_the_data_counts_for_nothing(scheme: str) -> None:
    states, padding = torch.randn(3, 6, WIDTH), torch.zeros(3, 6, dtype=torch.bool)
    padding[0, 4:] = padding[2] = True
    plan = AttentionPlan.of({"encoder_self": of(scheme)})
    without = convert_model(Stack(), plan, lambda m: m(states[:2], padding[:2]))
    model = Stack()
    assert not model(states, padding)[2].isfinite().any()
    assert convert_model(model, plan, lambda m: m(states, padding)) == without
    if scheme == "multi_head":
        torch.testing.assert_close(
            model(states, padding)[:2], Stack()(states, padding)[:2], atol=1e-5, rtol=1e-5
        )


def test_data_that_are_no_numbers_are_refused() -> None:
    states = torch.randn(2, 5, WIDTH)
    states[1, 2] = torch.nan
    model = of_torch()
    before = snapshot(model)
    plan = AttentionPlan.of({"encoder_self": of("multi_query")})
    with pytest.raises(PlanError, match=r"layers\.0\.self_attn.*its inputs are infinite or not a"):
        convert_model(model, plan, lambda m: m(states))
    assert_untouched(model, before)


def test_an_empty_batch_in_the_data_is_no_fault() -> None:
    convert_model(of_torch(), KEEP, lambda m: m(torch.randn(0, 5, WIDTH)))


@pytest.mark.parametrize(
    "names",
    ["Wq Wk Wv", "linear_q linear_k linear_v", "fc_Q fc_K fc_V", "Query Key Value", "to_q to_kv",
     "query_layer key_layer value_layer", "queries keys values", "in_qkv", "c_attn"],
)  # fmt: skip
def test_attention_is_known_by_its_projections(names: str) -> None:
    model = of_torch()
    model.mixer = nn.Module()
    for name in names.split():
        model.mixer.add_module(name, nn.Linear(WIDTH, WIDTH))
    with pytest.raises(PlanError, match=r"not known here is .*\(mixer\)"):
        convert_model(model, KEEP)


def test_other_modules_are_no_attention() -> None:
    model = of_torch()
    model.mixer = nn.Module()
    for name in ("query", "key", "sequence", "frequency", "kernel", "vocabulary", "q_norm"):
        model.mixer.add_module(name, nn.Linear(WIDTH, WIDTH))
    assert len(convert_model(model, KEEP)) == 2


def test_data_calibrate_a_model_that_trains_in_part() -> None:
    model = of_torch()
    model.layers[0].requires_grad_(False)
    model.train()
    model.layers[0].eval()
    convert_model(model, KEEP, lambda m: m(torch.randn(2, 5, WIDTH)))
    assert [layer.training for layer in model.layers] == [False, True]
    assert [layer.self_attn.training for layer in model.layers] == [False, True]
    trains = [all(p.requires_grad for p in layer.self_attn.parameters()) for layer in model.layers]
    assert trains == [False, True]


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_module_in_several_places_stays_one(batch_first: bool) -> None:
    model = of_torch(batch_first)
    model.layers[1].self_attn = model.layers[0].self_attn
    states = torch.randn(2, 5, WIDTH)
    wanted = model(states)
    [converted] = convert_model(model, KEEP)
    assert converted.name == "layers.0.self_attn"
    assert model.layers[0].self_attn is model.layers[1].self_attn
    assert sum(isinstance(module, Attention) for module in model.modules()) == 1
    torch.testing.assert_close(model(states), wanted)


def test_multi_head_changes_no_bit_of_the_weights() -> None:
    model = bert()
    query = bert_attention(model).query.weight
    [converted, _] = convert_model(model, KEEP, lambda m: m(**tokens(m)))
    assert torch.equal(bert_attention(model).attention.q_proj.weight, query)
    assert converted.errors is not None
    assert converted.errors.outputs == 0.0


@pytest.mark.parametrize("asked", ["by argument", "by configuration", "before as well"])
def test_attention_weights_are_still_returned(asked: str) -> None:
    model = bert(_attn_implementation="eager")
    more = {"output_attentions": True}
    if asked == "by configuration":
        model.config.output_attentions, more = True, {}
    converted = copy.deepcopy(model)
    if asked == "before as well":  # transformers then has its hooks in place
        converted(**tokens(model), **more)
    convert_model(converted, KEEP)
    wanted, found = (m(**tokens(m), **more).attentions for m in (model, converted))
    assert len(found) == len(wanted) == 2
    torch.testing.assert_close(found, wanted)


def test_converted_models_are_copied_and_pickled() -> None:
    model = bert()
    convert_model(model, AttentionPlan.of({"encoder_self": of("multi_query")}))
    wanted = model(**tokens(model)).last_hidden_state
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(**tokens(model)).last_hidden_state, wanted)


def test_save_pretrained_says_how_to_save() -> None:
    import transformers

    torch.manual_seed(0)
    whole = transformers.BertForMaskedLM(build("BertModel", "meta").config).eval()
    plan = AttentionPlan.of({"encoder_self": of("multi_query")})
    fresh = copy.deepcopy(whole)
    convert_model(whole, plan)
    for part in (whole, whole.bert):
        with pytest.raises(NotImplementedError, match=r"save_converted\(model, FOLDER\)"):
            part.save_pretrained("nowhere")
    for parameter in fresh.parameters():
        nn.init.normal_(parameter)
    convert_model(fresh, AttentionPlan.parse(plan.dumps()))
    fresh.load_state_dict(whole.state_dict())
    torch.testing.assert_close(
        fresh(**tokens(fresh)).logits, whole(**tokens(whole)).logits, rtol=0, atol=0
    )


def test_masks_of_other_implementations_are_refused() -> None:
    model = bert()
    convert_model(model, KEEP)
    states = torch.zeros(2, 3, WIDTH).double()
    with pytest.raises(NotImplementedError, match="attn_implementation='sdpa'"):
        bert_attention(model)(states, torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(NotImplementedError, match="takes no cache"):
        bert_attention(model)(states, None, "a cache")


def test_collaborative_wants_data(caplog: pytest.LogCaptureFixture) -> None:
    plan = AttentionPlan.of({"encoder_self": of("collaborative", shared_dim=8)})
    convert_model(of_torch(), plan, lambda m: m(torch.randn(2, 5, WIDTH)))
    for exact in (of("multi_query"), of("collaborative", shared_dim=WIDTH)):
        convert_model(of_torch(), AttentionPlan.of({"encoder_self": exact}))
    assert not caplog.records
    convert_model(of_torch(), plan)
    [record] = caplog.records
    assert "collaborative attention of 2 modules by weights alone" in record.getMessage()
