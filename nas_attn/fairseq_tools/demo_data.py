"""Corpora generated from a seed: the demo's translation task, and a classification task.

Translation: the source is a set of distinct made-up words in random order; the target is their
translations in alphabetical order. To say the next word a decoder must find, among all source
words, the smallest that it has not said yet: every step is an act of attention over content, and
the fewer query/key dimensions attention has, the fewer words it can tell apart.

Classification: does one of two given words stand before the other?
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

WORDS = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
LANGUAGES = ("src", "tgt")
VALID_SENTENCES = 800
TEST_SENTENCES = 400
MIN_WORDS, MAX_WORDS = 4, 10


def make_up_words(count: int) -> list[str]:
    """Distinct words of three of the demo's each, the same ones every time.

    Args:
        count: Number of words; 216,000 at most.
    """
    spelled = map("".join, itertools.product(WORDS, repeat=3))
    step = len(WORDS) ** 3 // count
    return list(itertools.islice(spelled, 0, step * count, step))


def make_demo_corpus(
    seed: int,
    train_sentences: int,
    *,
    words: Sequence[str] = WORDS,
    lengths: tuple[int, int] = (MIN_WORDS, MAX_WORDS),
    test_sentences: int = TEST_SENTENCES,
) -> dict[str, list[list[str]]]:
    """Generate the corpus.

    Args:
        seed: Seed; the same one gives the same text.
        train_sentences: Pairs to train on.
        words: Words of the source language.
        lengths: Fewest and most words of a sentence.
        test_sentences: Pairs of the test set.

    Returns:
        For each split the source and the target lines.
    """
    generator = random.Random(seed)
    corpus: dict[str, list[list[str]]] = {}
    for split, sentences in (_sizes(train_sentences) | {"test": test_sentences}).items():
        sources, targets = [], []
        for _ in range(sentences):
            said = generator.sample(words, generator.randint(*lengths))
            sources.append(" ".join(said))
            targets.append(" ".join(word + "n" for word in sorted(said)))
        corpus[split] = [sources, targets]
    return corpus


def make_classification_corpus(seed: int, train_sentences: int) -> dict[str, list[list[str]]]:
    """Generate sentences that all hold the first two words, and labels.

    Args:
        seed: Seed; the same one gives the same text.
        train_sentences: Sentences to train on.

    Returns:
        For each split the sentences and their labels, `before` if the first word of `WORDS` stands
        before the second one, else `after`; both are as frequent.
    """
    generator = random.Random(seed)
    corpus: dict[str, list[list[str]]] = {}
    for split, sentences in _sizes(train_sentences).items():
        lines, labels = [], []
        for _ in range(sentences):
            others = generator.sample(WORDS[2:], generator.randint(MIN_WORDS, MAX_WORDS) - 2)
            said = [*WORDS[:2], *others]
            generator.shuffle(said)
            lines.append(" ".join(said))
            labels.append("before" if said.index(WORDS[0]) < said.index(WORDS[1]) else "after")
        corpus[split] = [lines, labels]
    return corpus


def _sizes(train_sentences: int) -> dict[str, int]:
    return {"train": train_sentences, "valid": VALID_SENTENCES, "test": TEST_SENTENCES}
