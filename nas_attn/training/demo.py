"""The demo's translation corpus, generated from a seed.

The source is a set of distinct made-up words in random order; the target is their translations in
alphabetical order. To say the next word a decoder must find, among all source words, the smallest
that it has not said yet: every step is an act of attention over content, and the fewer query/key
dimensions attention has, the fewer words it can tell apart.
"""

from __future__ import annotations

import random

CONSONANTS = "bdfgklmnprst"
VOWELS = "aeiou"
LANGUAGES = ("src", "tgt")
VALID_SENTENCES = 800
TEST_SENTENCES = 400
MIN_WORDS, MAX_WORDS = 4, 10


def make_demo_corpus(seed: int, train_sentences: int) -> dict[str, list[list[str]]]:
    """Generate the corpus.

    Args:
        seed: the same seed gives the same text.
        train_sentences: pairs to train on.

    Returns:
        For each split the source and the target lines.
    """
    words = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
    generator = random.Random(seed)
    sizes = {"train": train_sentences, "valid": VALID_SENTENCES, "test": TEST_SENTENCES}
    corpus: dict[str, list[list[str]]] = {}
    for split, sentences in sizes.items():
        sources, targets = [], []
        for _ in range(sentences):
            said = generator.sample(words, generator.randint(MIN_WORDS, MAX_WORDS))
            sources.append(" ".join(said))
            targets.append(" ".join(word + "n" for word in sorted(said)))
        corpus[split] = [sources, targets]
    return corpus
