"""The predicted front of a small GPT-2 that plain transformers trained on WikiText-2.

    python benchmarks/gpt2_front.py train WIKITEXT2 FOLDER
    python benchmarks/gpt2_front.py front WIKITEXT2 FOLDER

WIKITEXT2 holds train.txt.gz and valid.txt.gz. `train` makes a vocabulary of 2,048 byte pairs and
trains 4 layers of width 128 with 4 heads; it knows nothing of nas_attn. `front` measures single
conversions on sequences of the validation split, and prints whether they add up, and the predicted
front with what was measured of recommended plans. With `--scores gradient` one pass scores them.
"""

from __future__ import annotations

import argparse
import gzip
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import nas_attn
from nas_attn.measures import Scores

VOCABULARY = 2048
SPACE = {
    "decide": "layer",
    "schemes": {
        "multi_head": {},
        "grouped_query": {"num_groups": [2]},
        "multi_query": {},
        "reduced_key": {"key_dim": [8, 16, 32, 64]},
        "collaborative": {"shared_dim": [16, 32, 64], "num_value_heads": [1, 4]},
        "shared_key_value": {},
        "grouped_head": {"kept_heads": [1, 2, 3], "alpha": [0.0], "beta": [0.0]},
    },
}
LENGTH = 128
"""Tokens of a training sequence and of a validation example."""
BATCH = 8
LEARNING_RATE = 2e-3
WARM_UP = 50
VALIDATED = 256
"""Validation sequences that are asked at the end, about."""


def text_of(folder: Path, split: str) -> str:
    with gzip.open(folder / f"{split}.txt.gz", "rt", encoding="utf-8", newline="\n") as file:
        return file.read()


def tokenizer_of(data: Path, folder: Path) -> Any:
    """Byte pairs of the training split, made once."""
    import tokenizers

    path = folder / "tokenizer.json"
    if not path.is_file():
        made = tokenizers.ByteLevelBPETokenizer()
        made.train_from_iterator(
            text_of(data, "train").split("\n"), vocab_size=VOCABULARY, show_progress=False
        )
        made.save(str(path))
    return tokenizers.Tokenizer.from_file(str(path))


def sequences(tokenizer: Any, text: str) -> Tensor:
    """Tokens of a split, as (sequences, LENGTH)."""
    lines = tokenizer.encode_batch([f"{line}\n" for line in text.split("\n")])
    tokens = torch.tensor([token for line in lines for token in line.ids])
    return tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Of each sequence, in bits a token."""
    logits = model(tokens, use_cache=False).logits[:, :-1]
    lost = nn.functional.cross_entropy(logits.mT, tokens[:, 1:], reduction="none")
    return lost.mean(1) / math.log(2.0)


def train(data: Path, folder: Path, epochs: float, minutes: float) -> None:
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(data, folder)
    tokens, valid = (sequences(tokenizer, text_of(data, split)) for split in ("train", "valid"))
    valid = valid[:: len(valid) // VALIDATED]
    torch.manual_seed(1)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=LENGTH,
            n_embd=128,
            n_layer=4,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    adam = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
    steps = int(epochs * len(tokens) / BATCH)
    began, order = time.monotonic(), torch.randperm(0)
    for step in range(steps):
        seconds = time.monotonic() - began
        over = max(step / steps, seconds / (60 * minutes))
        if over >= 1.0:
            break
        for group in adam.param_groups:
            warm = min(1.0, (step + 1) / WARM_UP)
            group["lr"] = LEARNING_RATE * warm * 0.5 * (1.0 + math.cos(math.pi * over))
        if len(order) < BATCH:
            order = torch.randperm(len(tokens))
        some, order = tokens[order[:BATCH]], order[BATCH:]
        nats = model(some, labels=some).loss
        adam.zero_grad()
        nats.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        if step % 50 == 0:
            print(f"step {step} of {steps}, {nats:.3f} nats, {seconds:.0f} s", flush=True)
    print(f"{step + 1} updates of {BATCH * LENGTH} tokens in {time.monotonic() - began:.0f} s")
    model.eval().save_pretrained(folder)
    with torch.no_grad():
        lost = torch.cat([loss(model, some) for some in valid.split(BATCH)])
    print(f"validation: {float(lost.mean()):.4f} bits a token")


def predict(data: Path, folder: Path, sequences_: int, scores: Scores) -> None:
    import transformers

    began = time.monotonic()
    model = transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    tokenizer = tokenizer_of(data, folder)
    judged, fitted = (
        tokens[:: len(tokens) // sequences_][:sequences_].split(BATCH)
        for tokens in (sequences(tokenizer, text_of(data, split)) for split in ("valid", "train"))
    )
    with torch.no_grad():
        lost = torch.cat([loss(model, some) for some in judged])
    print(f"as trained: {float(lost.mean()):.4f} bits a token of {len(lost)} sequences")
    front = nas_attn.predict_front(
        *(model, judged, loss, SPACE),
        calibration=fitted,
        checks=20,
        scores=scores,
        folder=folder / f"front-{scores}",
        name="GPT-2, 4 layers, width 128, WikiText-2",
        unit="bits per token",
    )
    print(front.verdict)
    singles = len(front.findings.changes)
    print(f"{singles} single changes, {time.monotonic() - began:.0f} s, 1 thread\n")
    base = front.findings.base_cost
    seen = {check.plan: check.measured for check in front.findings.checks}
    seen |= {plan: one.change for plan, one in front.findings.measured.items()}
    print("attention  of all  cache bytes a token  predicted  measured  plan")
    for point in front.recommended:
        cache = front.predictions.costs(point.plan)["cache_bytes"]
        expected = front.findings.corrected(point.change)
        known = f"{seen[point.plan]:9.4f}" if point.plan in seen else " " * 9
        print(
            f"{point.cost:9,} {point.cost / base:7.1%} {cache:20,} {expected:10.4f} {known}  "
            f"{point.plan}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["train", "front"])
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="train no longer")
    parser.add_argument("--sequences", type=int, default=64, help="that all is measured on")
    parser.add_argument("--scores", choices=["measured", "gradient", "auto"], default="measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "front":
        predict(options.data, options.folder, options.sequences, options.scores)
        return
    train(options.data, options.folder, options.epochs, options.minutes)


if __name__ == "__main__":
    main()
