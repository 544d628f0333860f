"""Every family of models that is converted: how exact, and with which cache it generates.

    python benchmarks/model_families.py [FAMILY ...]

Models are made from tiny configurations (2 layers, width 32, 4 heads, random weights as large as
training makes them) and converted to full width (grouped_query with a group a head in the first
layer, collaborative of the full width in the second): the largest difference of all that they
return, of its size, in float64 and float32. Then by grouped_query with 2 groups: whether 8 tokens
generated with the library's own cache are those without, by greedy search and by beams; whether the
model comes back from save_converted and load_converted to the last bit; numbers in the cache for a
token of the decoder, before and after. Prints a table; exits with 1 if anything is not as it must
be.
"""

from __future__ import annotations

import copy
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.transformers_sweep import difference, far_from_the_start, tensors
from nas_attn.conversion import convert_model, load_converted, save_converted
from nas_attn.conversion.adoption import find
from nas_attn.plan import AttentionChoice, AttentionPlan

WIDTH, HEADS, LAYERS, WORDS = 32, 4, 2, 60
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
GROUPS = AttentionChoice.of("grouped_query", num_groups=HEADS)
FULL = [GROUPS, AttentionChoice.of("collaborative", shared_dim=WIDTH)]
SHARED = AttentionChoice.of("grouped_query", num_groups=2)

SIZES = {
    "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
    "intermediate_size": 24,
}  # fmt: skip
TEXT = {**SIZES, "vocab_size": WORDS, "max_position_embeddings": 40}
PAIR = {
    "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS,
    "vocab_size": WORDS, "max_position_embeddings": 40,
}  # fmt: skip
IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 1}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
T5 = {
    "d_model": WIDTH, "d_kv": WIDTH // HEADS, "d_ff": 24, "num_layers": LAYERS,
    "num_heads": HEADS, "vocab_size": WORDS, "relative_attention_num_buckets": 6,
    "relative_attention_max_distance": 9,
}  # fmt: skip


class FusedAttention(nn.Module):
    """Attention of the shape that timm's vision transformers have."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.q_norm = nn.Identity()
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.1)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        heads = self.qkv(x).reshape(batch, time, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        joined = nn.functional.scaled_dot_product_attention(*heads.unbind(0))
        output: Tensor = self.proj_drop(self.proj(joined.transpose(1, 2).flatten(2)))
        return output


class Images(nn.Module):
    """A vision transformer of such attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleList(FusedAttention() for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LAYERS))

    def forward(self, states: Tensor) -> Tensor:
        for norm, attention in zip(self.norms, self.attention, strict=True):
            states = states + attention(norm(states))
        return states


@dataclass(frozen=True)
class Family:
    """A tiny model of a family.

    Args:
        make: Function that builds it.
        given: What it is called with.
        source: Those arguments with which it generates; empty if it does not.
        rotary: Whether only whole keys can be shared.
    """

    make: Callable[[], nn.Module]
    given: dict[str, Tensor]
    source: tuple[str, ...] = ()
    rotary: bool = False


def _tokens(*, left: bool = False) -> dict[str, Tensor]:
    ids = torch.randint(4, WORDS, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    padding = slice(0, 2) if left else slice(5, 7)
    mask[1, padding] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def _hugging_face(name: str, **options: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        kind: Any = getattr(transformers, name)
        model: nn.Module = kind(kind.config_class(**options))
        return model

    return make


def _clip() -> nn.Module:
    import transformers

    text = {**TEXT, "eos_token_id": WORDS - 1}
    sizes = {**SIZES, "hidden_size": 16, "num_attention_heads": 4, **IMAGE}
    config = transformers.CLIPConfig(text_config=text, vision_config=sizes, projection_dim=8)
    return transformers.CLIPModel(config)


def _bert_pair() -> nn.Module:
    import transformers

    parts = [
        transformers.BertConfig(**TEXT, is_decoder=is_decoder, add_cross_attention=is_decoder)
        for is_decoder in (False, True)
    ]
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    for name, value in SPECIAL.items():
        setattr(config, name, value)
    return transformers.EncoderDecoderModel(config)


def _torch() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True)
    return nn.TransformerEncoder(layer, LAYERS)


_TARGETS = {"decoder_input_ids": torch.tensor([[1, 9, 8, 5], [1, 7, 6, 4]])}
_PAIR_CALL = ({**_tokens(), **_TARGETS}, ("input_ids", "attention_mask"))


def _pair(name: str, **options: object) -> Family:
    return Family(_hugging_face(name, **SPECIAL, **options), *_PAIR_CALL)


def _whisper() -> Family:
    sizes = {**PAIR, "num_mel_bins": 6, "max_source_positions": 8, "max_target_positions": 40}
    make = _hugging_face("WhisperForConditionalGeneration", **SPECIAL, **sizes)
    given = {"input_features": _random(2, 6, 16), "decoder_input_ids": torch.tensor([[1, 9]] * 2)}
    return Family(make, given, ("input_features",))


def _reader(name: str, **options: object) -> Family:
    return Family(_hugging_face(name, **options), _tokens())


def _writer(name: str, *, rotary: bool = False, **options: object) -> Family:
    make = _hugging_face(name, **SPECIAL, **options)
    return Family(make, _tokens(left=True), ("input_ids", "attention_mask"), rotary)


GPT2 = {
    "vocab_size": WORDS, "n_positions": 40, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS,
}  # fmt: skip

FAMILIES: dict[str, Family] = {
    "bert": _reader("BertForMaskedLM", **TEXT),
    "minilm": _reader("BertModel", **TEXT),
    "roberta": _reader("RobertaForMaskedLM", **TEXT, pad_token_id=0),
    "distilbert": _reader(
        "DistilBertForMaskedLM", dim=WIDTH, n_heads=HEADS, n_layers=LAYERS, hidden_dim=24,
        vocab_size=WORDS, max_position_embeddings=40,
    ),
    "vit": Family(
        _hugging_face("ViTForImageClassification", **SIZES, **IMAGE),
        {"pixel_values": _random(2, 1, 8, 8)},
    ),
    "clip": Family(_clip, {**_tokens(), "pixel_values": _random(2, 1, 8, 8)}),
    "timm": Family(Images, {"states": _random(2, 7, WIDTH)}),
    "torch": Family(_torch, {"src": _random(2, 7, WIDTH)}),
    "gpt2": _writer("GPT2LMHeadModel", **GPT2, scale_attn_by_inverse_layer_idx=True),
    "llama": _writer("LlamaForCausalLM", rotary=True, **TEXT, num_key_value_heads=HEADS),
    "qwen2": _writer("Qwen2ForCausalLM", rotary=True, **TEXT, num_key_value_heads=HEADS),
    "bert pair": Family(_bert_pair, *_PAIR_CALL),
    "bart": _pair("BartForConditionalGeneration", **PAIR),
    "mbart": _pair("MBartForConditionalGeneration", **PAIR),
    "marian": _pair("MarianMTModel", **PAIR),
    "pegasus": _pair("PegasusForConditionalGeneration", **PAIR),
    "m2m_100": _pair("M2M100ForConditionalGeneration", **PAIR),
    "whisper": _whisper(),
    "t5": _pair("T5ForConditionalGeneration", **T5),
    "mt5": _pair("MT5ForConditionalGeneration", **T5, feed_forward_proj="gated-gelu"),
}  # fmt: skip

TOKENS = 8
"""Tokens that are generated."""


def build(family: Family, **options: object) -> nn.Module:
    """The model of a family in float64, with weights as large as training makes them."""
    torch.manual_seed(0)
    return far_from_the_start(family.make())


def outputs(model: nn.Module, family: Family) -> list[Tensor]:
    """All numbers that a model returns of its input, but for the cache, and of padding."""
    dtype = next(model.parameters()).dtype
    given = {k: t.to(dtype) if t.is_floating_point() else t for k, t in family.given.items()}
    with torch.no_grad():
        result = model(**given)
    if not isinstance(result, Tensor):
        result = {k: v for k, v in result.items() if not k.startswith(("cache", "past"))}
    mask = family.given.get("attention_mask")
    valid = None if mask is None else mask.bool()
    return [
        t[valid] if valid is not None and t.shape[:2] == valid.shape else t
        for t in tensors(result)
        if t.is_floating_point()
    ]


def converted(model: nn.Module, choices: list[AttentionChoice]) -> nn.Module:
    """A copy, with a choice for each layer of each site."""
    model = copy.deepcopy(model)
    sites = dict.fromkeys(one.site for one in find(model))
    convert_model(model, AttentionPlan.of(dict.fromkeys(sites, choices)))
    return model


def exactness(model: nn.Module, family: Family) -> list[float]:
    """Differences of a model of full width, in float64 and float32."""
    found = []
    for dtype in TOLERANCES:
        before = copy.deepcopy(model).to(dtype)
        full = [GROUPS] if family.rotary else FULL
        found.append(difference(outputs(before, family), outputs(converted(before, full), family)))
    return found


def generated(model: Any, family: Family, tokens: int = TOKENS, **how: object) -> Any:
    """What a model generates of its input, and the cache that it has then."""
    dtype = next(model.parameters()).dtype
    given = {k: family.given[k] for k in family.source}
    given = {k: t.to(dtype) if t.is_floating_point() else t for k, t in given.items()}
    from transformers import GenerationMixin

    lengths = dict.fromkeys(("min_new_tokens", "max_new_tokens"), tokens)
    how = {**lengths, "do_sample": False, "return_dict_in_generate": True, **how}
    return GenerationMixin.generate(model, **given, **how)


def same_tokens(model: nn.Module, family: Family, **how: object) -> bool:
    """Whether the cache leaves what is generated as it is."""
    with_cache, without = (
        generated(model, family, use_cache=use_cache, **how).sequences
        for use_cache in (True, False)
    )
    return torch.equal(with_cache, without)


def cached_numbers(model: nn.Module, family: Family) -> int:
    """Numbers that the decoder's cache holds for a token."""
    cache = generated(model, family, tokens=1).past_key_values
    layers = getattr(cache, "self_attention_cache", cache).layers
    return sum(t.size(1) * t.size(3) for layer in layers for t in (layer.keys, layer.values))


def comes_back(model: nn.Module, family: Family) -> bool:
    """Whether a converted model is the same after saving and loading."""
    with tempfile.TemporaryDirectory() as folder:
        save_converted(model, folder)
        bare = None if hasattr(model, "config") else family.make()
        loaded = load_converted(folder, bare)
    pairs = zip(outputs(model, family), outputs(loaded, family), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@dataclass(frozen=True)
class Row:
    """What is found of a family; of those that do not generate, None.

    Args:
        exact: Differences of a model of full width, in float64 and float32.
        greedy: Whether tokens are the same with and without a cache.
        beams: The same by beam search.
        saved: Whether it comes back from its folder.
        cache: Numbers in the cache for a token, before and after.
    """

    exact: list[float]
    greedy: bool | None
    beams: bool | None
    saved: bool
    cache: tuple[int, int] | None

    @property
    def is_well(self) -> bool:
        """Whether all is as it must be."""
        exact = all(d < most for d, most in zip(self.exact, TOLERANCES.values(), strict=True))
        halved = self.cache is None or 2 * self.cache[1] == self.cache[0]
        return exact and halved and self.saved and False not in (self.greedy, self.beams)


def judge(family: Family) -> Row:
    """All that the table has of a family."""
    model = build(family)
    shared = converted(model, [SHARED])
    writes = bool(family.source)
    return Row(
        exact=exactness(model, family),
        greedy=same_tokens(shared, family) if writes else None,
        beams=same_tokens(shared, family, num_beams=3) if writes else None,
        saved=comes_back(shared, family),
        cache=(cached_numbers(model, family), cached_numbers(shared, family)) if writes else None,
    )


def main() -> int:
    import transformers

    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = {name: judge(FAMILIES[name]) for name in sys.argv[1:] or FAMILIES}
    words = {None: "", True: "equal", False: "DIFFERENT"}
    print("| family | float64 | float32 | greedy | beams | save, load | cache |")
    print("|---|---:|---:|---|---|---|---:|")
    for name, row in rows.items():
        exact = " | ".join(f"{d:.0e}" for d in row.exact)
        cache = "" if row.cache is None else f"{row.cache[0]} to {row.cache[1]}"
        print(
            f"| {name} | {exact} | {words[row.greedy]} | {words[row.beams]} | {words[row.saved]} | "
            f"{cache} |"
        )
    print(f"\ntransformers {transformers.__version__}, torch {torch.__version__}")
    return 0 if all(row.is_well for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
