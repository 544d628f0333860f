"""convert_model over every family of models of the installed transformers, at tiny sizes.

    python benchmarks/transformers_sweep.py [MODEL ...]

A base model of each configuration is built (on torch's meta device first, which needs no memory),
converted and compared: by the plan multi_head and by grouped-query attention with a group a head,
in float64 (some models compute the softmax in float32 even so), with and without padding, with its
attention weights, and it must train. What is
refused must be so by PlanError that names a class of attention in it, with the model untouched.
Prints a line a model and a table by class; exits with 1 if anything is neither exact nor refused.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.conversion import convert_model
from nas_attn.conversion.adoption import ATTENTION_NAME, find
from nas_attn.conversion.table import HUGGING_FACE, full_name
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice, AttentionPlan

WIDTH, HEADS = 32, 4
MOST = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd", "embed_dim"), WIDTH),
    **dict.fromkeys(("embedding_size", "projection_dim"), WIDTH),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff"), 24),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 24),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads"), HEADS),
    **dict.fromkeys(("n_head", "n_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "decoder_num_hidden_layers"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "decoder_attention_heads": HEADS, "decoder_num_attention_heads": HEADS,
    "decoder_hidden_size": WIDTH, "decoder_intermediate_size": 24,
    "vocab_size": 120, "max_position_embeddings": 64, "image_size": 32, "patch_size": 8,
    "num_frames": 4, "max_length": 64, "num_mel_bins": 32,
}  # fmt: skip
"""Sizes that a tiny configuration has at most, by the names that configurations use."""

LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers")
TOLERANCE = 1e-5
CHOICES = {
    "multi_head": AttentionChoice.of("multi_head"),
    "grouped_query": AttentionChoice.of("grouped_query", num_groups=HEADS),
}


class NotRunError(Exception):
    """A tiny model does not run as it is, before any conversion."""


@dataclass
class Verdict:
    """What became of one model.

    Args:
        model: Name of its class.
        kind: Outcome: exact, refused, no attention, not built, not run; or BROKEN, which must not
            be.
        classes: Classes of attention in it.
        words: Reason, in words.
    """

    model: str
    kind: str
    classes: list[str] = field(default_factory=list)
    words: str = ""


def model_names() -> list[str]:
    """Base models of all families, one of each configuration."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    names: list[str] = []
    for found in MODEL_MAPPING_NAMES.values():
        names += [found] if isinstance(found, str) else list(found)
    return list(dict.fromkeys(names))


def shrink(config: Any, names: dict[str, int]) -> Any:
    """Bring sizes of a configuration, and of those within it, down."""
    for name, size in names.items():
        try:
            if type(getattr(config, name)) is int and getattr(config, name) > size:
                setattr(config, name, size)
        except Exception:  # a few names are aliases of what cannot be set
            continue
    if getattr(config, "vocab_size", 0) is None:
        config.vocab_size = MOST["vocab_size"]
    for name in getattr(config, "sub_configs", None) or ():
        if getattr(config, name, None) is not None:
            shrink(getattr(config, name), names)
    return config


def build(name: str, device: str, **options: object) -> nn.Module:
    """A model of a class; tiny, or with few layers where sizes depend on each other.

    Raises:
        RuntimeError: it cannot be built; the message says why.
    """
    import transformers

    kind = getattr(transformers, name)
    words = ""
    for sizes in (MOST, dict.fromkeys(LAYERS, 2), {}):
        try:
            config = shrink(kind.config_class(), sizes)
            for option, value in options.items():
                setattr(config, option, value)
            with torch.device(device):
                model: nn.Module = kind(config)
            return model
        except Exception as error:  # of any kind: hundreds of classes check in their own ways
            words = words or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise RuntimeError(words)


def inputs_of(model: Any, padded: bool) -> dict[str, Any]:
    """What a model is called with: two items of random tokens, an image or the like."""
    config, name = model.config, model.main_input_name
    make = torch.Generator().manual_seed(3)
    given: dict[str, Any] = {}
    if hasattr(model, "set_default_language"):
        model.set_default_language("en_XX")
    kind = type(model).__name__
    if name == "input_ids":
        given["input_ids"] = torch.randint(4, 100, (2, 9), generator=make)
        if padded:
            given["attention_mask"] = torch.ones(2, 9, dtype=torch.long)
            given["attention_mask"][1, 6:] = 0
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 32)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    image = (2, getattr(vision, "num_channels", 3), height, width)
    if name == "pixel_values":
        if "num_frames" in config.to_dict():
            image = (2, config.num_frames, *image[1:])
        given[name] = torch.randn(image, generator=make, dtype=torch.float64)
    if name == "input_values":
        shape = (2, config.max_length, config.num_mel_bins)
        given[name] = torch.randn(shape, generator=make, dtype=torch.float64)
    if kind.startswith(("Align", "Flava", "Vilt", "VisionText")):
        given["pixel_values"] = torch.randn(image, generator=make, dtype=torch.float64)
    return given


def far_from_the_start(model: nn.Module) -> nn.Module:
    """Weights and biases as large as training makes them, so that nothing is nearly zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name.lower():
                nn.init.normal_(parameter, std=0.2)
            elif name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    return model.double().eval()


def tensors(output: Any) -> Iterator[Tensor]:
    """All numbers that a model returns."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors(value)


def called(model: nn.Module, given: dict[str, Any], **more: bool) -> list[Tensor]:
    torch.manual_seed(2)  # masked autoencoders draw what they hide
    with torch.no_grad():
        return [t for t in tensors(model(**given, **more)) if t.is_floating_point()]


def difference(before: list[Tensor], after: list[Tensor]) -> float:
    """Largest difference, of the size of the numbers; infinite if not the same is returned."""
    if [t.shape for t in before] != [t.shape for t in after] or not before:
        return float("inf")
    pairs = zip(before, after, strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)


def judge(name: str) -> Verdict:
    """Convert a tiny model of a class in every way."""
    try:
        model = build(name, "meta")
    except (RuntimeError, AttributeError, ImportError) as error:
        return Verdict(name, "not built", words=" ".join(str(error).split()))
    classes = [
        full_name(type(m)) for m in model.modules() if ATTENTION_NAME.search(type(m).__name__)
    ]
    classes = list(dict.fromkeys(classes))
    before = [(n, id(m)) for n, m in model.named_modules()]
    try:
        convert_model(model, AttentionPlan.uniform(CHOICES["multi_head"], ("encoder_self",)))
    except PlanError as error:
        words = str(error)
        if [(n, id(m)) for n, m in model.named_modules()] != before:
            return Verdict(name, "BROKEN", classes, "refused, but not untouched")
        if not classes and words == "the model has no attention that is known here":
            return Verdict(name, "no attention")
        named = [kind for kind in classes if kind in words]
        if "meta device" not in words:
            kind = "refused" if "not known here is" in words or named else "BROKEN"
            return Verdict(name, kind, named or classes, words)
    except Exception as error:
        return Verdict(name, "BROKEN", classes, f"{type(error).__name__}: {error}")
    held = [kind for kind in classes if kind in HUGGING_FACE or kind.startswith("torch.")]
    try:
        words = faults(name)
    except NotRunError as error:
        return Verdict(name, "not run", held, str(error))
    except PlanError as error:  # the probe tells: the class does otherwise in this implementation
        named = any(kind in str(error) for kind in held)
        return Verdict(name, "refused" if named else "BROKEN", held, str(error))
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
    return Verdict(name, "BROKEN" if words else "exact", held, words)


def faults(name: str) -> str:
    """What differs after conversion; empty if nothing does."""
    for how in ("eager", "sdpa"):
        try:
            model = far_from_the_start(build(name, "cpu", _attn_implementation=how))
        except RuntimeError as error:
            if how == "sdpa" and "scaled_dot_product_attention" in str(error):
                continue  # a class that has one implementation only
            return f"{how}: {error}"
        for padded in (False, True):
            given = inputs_of(model, padded)
            for choice_name, choice in CHOICES.items():
                # sdpa returns no weights, and ours then still does.
                words = faults_of(model, given, choice, with_weights=how == "eager", data=padded)
                if words:
                    return f"{how}, padding {padded}, {choice_name}: {words}"
    return ""


def faults_of(
    model: nn.Module,
    given: dict[str, Any],
    choice: AttentionChoice,
    *,
    with_weights: bool,
    data: bool,
) -> str:
    """As `faults`, of one model by one plan."""
    ways: list[dict[str, bool]] = [{}, {"output_attentions": True}] if with_weights else [{}]
    try:
        wanted = [called(model, given, **way) for way in ways]
    except Exception as error:
        raise NotRunError(f"{type(error).__name__}: {error}") from None
    converted = copy.deepcopy(model)
    made = convert_model(
        converted,
        AttentionPlan.uniform(choice, sites_of(model)),
        (lambda m: m(**given)) if data else None,
    )
    if not made:
        return "nothing was converted"
    for way, before in zip(ways, wanted, strict=True):
        off = difference(before, called(converted, given, **way))
        if off > TOLERANCE:
            return f"outputs{' and weights' if way else ''} move by {off:.1e}"
    return untrained(converted, given)


def sites_of(model: nn.Module) -> tuple[str, ...]:
    """Those that the names of a model's known attention tell."""
    return tuple(dict.fromkeys(found.site for found in find(model)))


def untrained(model: nn.Module, given: dict[str, Any]) -> str:
    """Whether a training step reaches all attention."""
    from nas_attn.attention import Attention

    model.train()
    sum(t.square().mean() for t in tensors(model(**given)) if t.requires_grad).backward()
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            lost = [n for n, p in module.named_parameters() if p.grad is None]
            if lost:
                return f"no gradient for {name}.{lost[0]}"
    return ""


def main() -> int:
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = sys.argv[1:] or model_names()
    verdicts = []
    for name in names:
        verdicts.append(judge(name))
        print(f"{verdicts[-1].kind:12} {name}: {verdicts[-1].words[:160]}", flush=True)
    print(f"\ntransformers {transformers.__version__}, torch {torch.__version__}")
    by_class: dict[str, Counter[str]] = defaultdict(Counter)
    for verdict in verdicts:
        for kind in verdict.classes:
            by_class[kind.removeprefix("transformers.models.")][verdict.kind] += 1
    for kind, counts in sorted(by_class.items()):
        print(f"  {', '.join(f'{k} {n}' for k, n in sorted(counts.items())):24} {kind}")
    counts = Counter(verdict.kind for verdict in verdicts)
    print(f"{len(verdicts)} models: {', '.join(f'{k} {n}' for k, n in counts.most_common())}")
    return 1 if counts["BROKEN"] else 0


if __name__ == "__main__":
    sys.exit(main())
