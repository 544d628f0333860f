"""Shared fixtures: one thread, real data where it is at hand, tiny prepared data sets."""

import os
import warnings
from pathlib import Path

import pytest
import torch

with warnings.catch_warnings():
    # fairseq's modules use deprecated calls of torch, hydra and Python as they are imported.
    warnings.simplefilter("ignore")
    import fairseq_plugin  # noqa: F401

from nas_attn.fairseq_tools.data import PreparedData, prepare
from nas_attn.fairseq_tools.demo_data import LANGUAGES, make_demo_corpus
from tests.helpers.paths import ROOT


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the development corpora: NAS_ATTN_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("NAS_ATTN_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no development corpora (set NAS_ATTN_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny_translation(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """A small prepared translation set, the demo's with fewer sentences."""
    corpus = make_demo_corpus(seed=3, train_sentences=300)
    for split in ("valid", "test"):
        corpus[split] = [side[:61] for side in corpus[split]]
    folder = tmp_path_factory.mktemp("data") / "translation"
    return prepare(corpus, LANGUAGES, folder, vocab_size=200, subword="word")


@pytest.fixture(scope="session")
def tiny_language(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """A small prepared language-modelling set."""
    corpus = make_demo_corpus(seed=4, train_sentences=300)
    text = {split: [sides[1]] for split, sides in corpus.items()}
    folder = tmp_path_factory.mktemp("data") / "language"
    return prepare(text, (), folder, vocab_size=200, subword="word")
