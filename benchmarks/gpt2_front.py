"""The predicted front of a small GPT-2 that plain transformers trained on WikiText-2.

    python benchmarks/gpt2_front.py train WIKITEXT2 FOLDER
    python benchmarks/gpt2_front.py front WIKITEXT2 FOLDER

WIKITEXT2 holds train.txt.gz and valid.txt.gz. `train` makes a vocabulary of 2,048 byte pairs and
trains 4 layers of width 128 with 4 heads. It knows nothing of nas_attn.
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
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

VOCABULARY = 2048
LENGTH = 128
"""Tokens of a training sequence and of a validation example."""
BATCH = 8
LEARNING_RATE = 2e-3
WARM_UP = 100


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


def bits(model: Any, tokens: Tensor) -> Tensor:
    """The loss of each sequence, in bits a token."""
    found = []
    for some in tokens.split(BATCH):
        logits = model(some, use_cache=False).logits[:, :-1]
        lost = torch.nn.functional.cross_entropy(logits.mT, some[:, 1:], reduction="none")
        found.append(lost.mean(1) / math.log(2.0))
    return torch.cat(found)


def train(data: Path, folder: Path, epochs: float, minutes: float) -> None:
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(data, folder)
    tokens, valid = (sequences(tokenizer, text_of(data, split)) for split in ("train", "valid"))
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
        loss = model(some, labels=some).loss
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        if step % 50 == 0:
            print(f"step {step} of {steps}, {loss:.3f} nats, {seconds:.0f} s", flush=True)
    print(f"{step + 1} updates of {BATCH * LENGTH} tokens in {time.monotonic() - began:.0f} s")
    model.eval()
    with torch.no_grad():
        print(f"validation: {float(bits(model, valid).mean()):.4f} bits a token")
    model.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["train", "front"])
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="train no longer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train(options.data, options.folder, options.epochs, options.minutes)


if __name__ == "__main__":
    main()
