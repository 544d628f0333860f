"""A model as a folder for CTranslate2, by CTranslate2's own converter of fairseq's models."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from nas_attn._imports import require_extra
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.fairseq_tools.checkpoints import save_checkpoint
from nas_attn.fairseq_tools.same_tokens import Probe, Tokens
from nas_attn.fairseq_tools.stock import stock_state
from nas_attn.fairseq_tools.trained import TrainedModel


def write_ctranslate2(trained: TrainedModel, data: Path, out: Path) -> None:
    """Write the folder that `ctranslate2.Translator` loads, or `Generator` of a language model.

    Keys and values that heads share are stored, computed and cached once, where CTranslate2 can:
    where a module's heads form groups of one size that share both.

    Args:
        trained: Model of the plugin.
        data: Folder with its dictionaries.
        out: The folder, which must not be there.

    Raises:
        UsageError: The plan cannot be written as multi-head attention, or CTranslate2 does not
            know such a model; says why.
        MissingExtraError: CTranslate2 is not installed.
    """
    require_extra("export", "ctranslate2")
    state = stock_state(trained)
    arguments = state["cfg"]["model"]
    if arguments.arch == "roberta":
        raise UsageError("CTranslate2 reads no masked language models of fairseq's")
    converter = importlib.import_module("ctranslate2.converters.fairseq")
    stock = out.with_name(f"{out.name}.stock.pt")

    class Converter(converter.FairseqConverter):  # type: ignore[name-defined,misc]
        """CTranslate2's, whose specification is narrowed to what heads do not share."""

        def _load(self) -> Any:
            spec = super()._load()
            _share_heads(spec)
            return spec

    try:
        # It reads plain data only, as our plugin tells torch to; the file is ours besides.
        save_checkpoint(state, stock)
        languages = {
            name: getattr(arguments, name, None) for name in ("source_lang", "target_lang")
        }
        Converter(str(stock), str(data), **languages).convert(str(out))
    except NasAttnError:
        raise
    except Exception as error:  # of the converter, many kinds
        raise UsageError(f"CTranslate2 does not convert this model: {error}") from None
    finally:
        stock.unlink(missing_ok=True)


def ctranslate2_tokens(probe: Probe, folder: Path) -> Tokens:
    """What CTranslate2 writes on the sentences of a probe, on one CPU thread in float32."""
    import ctranslate2

    how = {"device": "cpu", "compute_type": "float32", "inter_threads": 1, "intra_threads": 1}
    if not probe.translates:
        generator = ctranslate2.Generator(str(folder), **how)
        scores = (generator.forward_batch([source]) for source in probe.sources)
        return probe.as_pieces([_best(score)[0] for score in scores])
    found = ctranslate2.Translator(str(folder), **how).translate_batch(
        probe.sources, beam_size=probe.beam, max_decoding_length=probe.most_tokens
    )
    return [one.hypotheses[0] for one in found]


def _best(scores: Any) -> list[list[int]]:
    import numpy as np

    best: list[list[int]] = np.asarray(scores).argmax(-1).tolist()
    return best


def _share_heads(spec: Any) -> None:
    """Narrow keys and values of a specification to as many heads as differ."""
    layers = list(getattr(getattr(spec, "encoder", None), "layer", ()))
    for layer in [*layers, *spec.decoder.layer]:
        heads = int(spec.decoder.num_heads)
        layer.self_attention = _narrowed(layer.self_attention, heads, is_self=True)
        if hasattr(layer, "attention"):
            layer.attention = _narrowed(layer.attention, heads, is_self=False)


def _narrowed(attention: Any, heads: int, *, is_self: bool) -> Any:
    """A specification of one module with keys and values of groups.

    CTranslate2 holds queries, keys and values of self-attention one below the other in one matrix,
    and those of attention to the encoder as queries, and keys above values.
    """
    import numpy as np

    fused = attention.linear[0 if is_self else 1]
    width = len(fused.weight) // (3 if is_self else 2)
    queries = width if is_self else 0

    def split(rows: Any) -> Any:
        return rows[queries:].reshape(2, heads, width // heads, *rows.shape[1:])

    parts = [split(fused.weight), split(fused.bias)]
    groups = next(g for g in range(1, heads + 1) if heads % g == 0 and _are_shared(parts, g))
    if groups == heads:
        return attention
    step = heads // groups
    for name, part in zip(("weight", "bias"), parts, strict=True):
        rows = getattr(fused, name)
        own = part[:, ::step].reshape(-1, *rows.shape[1:])
        setattr(fused, name, np.concatenate([rows[:queries], own]))
    specs = importlib.import_module("ctranslate2.specs.attention_spec")
    made = specs.MultiHeadAttentionSpec(self_attention=is_self, num_heads_kv=groups)
    made.linear, made.layer_norm = attention.linear, attention.layer_norm
    return made


def _are_shared(parts: list[Any], groups: int) -> bool:
    """Whether heads (2, n, h, ...) are equal, to the last bit, within groups of one size."""
    for part in parts:
        grouped = part.reshape(2, groups, -1, *part.shape[2:])
        if not (grouped == grouped[:, :, :1]).all():
            return False
    return True
