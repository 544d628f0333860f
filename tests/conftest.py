"""Shared fixtures: one thread, real data where it is at hand, tiny prepared data sets."""

from __future__ import annotations

import fcntl
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

with warnings.catch_warnings():
    # fairseq's modules use deprecated calls of torch, hydra and Python as they are imported.
    warnings.simplefilter("ignore")
    from nas_attn.light_fairseq import defer_sklearn

    defer_sklearn()
    import fairseq_plugin  # noqa: F401

from nas_attn.fairseq_tools.data import PreparedData, load_prepared, prepare
from nas_attn.fairseq_tools.demo_data import LANGUAGES, make_demo_corpus
from nas_attn.fairseq_tools.pieces import Corpus
from tests.helpers.devices import skip_without_cuda
from tests.helpers.forked import SharedForkServer
from tests.helpers.paths import LONGEST, ROOT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(LONGEST)))
    for item in items:
        skip_without_cuda(item)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _one_fork_server() -> Iterator[None]:
    """Searches that a test process runs itself start trainings off one server: imports take 5 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nas_attn.engine.executors.local.ForkServer", SharedForkServer)
        yield


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
    return _prepared_once(tmp_path_factory, "translation", corpus, LANGUAGES)


@pytest.fixture(scope="session")
def tiny_language(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """A small prepared language-modelling set."""
    corpus = make_demo_corpus(seed=4, train_sentences=300)
    text = {split: [sides[1]] for split, sides in corpus.items()}
    return _prepared_once(tmp_path_factory, "language", text, ())


def _prepared_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, corpus: Corpus, languages: Sequence[str]
) -> PreparedData:
    """Prepare a data set once a test run; every test process gets a copy that it may change."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    made = shared / f"prepared-{name}"
    with (shared / f"prepared-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            unfinished = made.with_suffix(".unfinished")
            prepare(corpus, languages, unfinished, vocab_size=200, subword="word")
            unfinished.rename(made)
    folder = tmp_path_factory.mktemp("data") / name
    shutil.copytree(made, folder)
    return load_prepared(folder, languages)
