"""BLEU is cut as the target language needs, and alike in validations and evaluations."""

from __future__ import annotations

import random
import sys
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from fairseq import options, scoring, tasks
from fairseq.data import encoders
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from nas_attn.bleu import BleuTokenizer
from nas_attn.errors import ConfigError
from nas_attn.fairseq_tools.bleu import advice, spaces_per_character, validation_flags
from nas_attn.fairseq_tools.data import PreparedData, prepare
from nas_attn.study.loading import load_study
from tests.helpers.studies import write

REFERENCES = ["今日は良い天気ですね。", "私は日本語を話します。"]
TRANSLATIONS = ["今日は良い天気です。", "私は日本語を話す。"]


@pytest.fixture(scope="module")
def japanese(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Translation into sentences without spaces."""
    draw = random.Random(1)
    lines = [
        [draw.choice("".join(REFERENCES)) for _ in range(draw.randint(5, 9))] for _ in range(60)
    ]
    sides = [[" ".join("ab" for _ in line) for line in lines], ["".join(line) for line in lines]]
    corpus = {"train": sides, "valid": sides, "test": [REFERENCES, REFERENCES]}
    folder = tmp_path_factory.mktemp("japanese") / "data"
    return prepare(corpus, ("en", "ja"), folder, vocab_size=60, subword="char")


def cut(text: str, tokenizer: str) -> str:
    made: Any = encoders.build_tokenizer(
        Namespace(tokenizer="sacrebleu", sacrebleu_tokenizer=tokenizer)
    )
    assert made.encode(text) == text
    decoded: str = made.decode(text)
    return decoded


@pytest.mark.parametrize("tokenizer", ["13a", "intl", "zh", "char", "none"])
def test_cutting_first_is_bleu_by_that_tokenizer(tokenizer: str) -> None:
    translations, references = [*TRANSLATIONS, "a,b c"], [*REFERENCES, "a, b c"]
    first = sacrebleu.corpus_bleu(
        [cut(text, tokenizer) for text in translations],
        [[cut(text, tokenizer) for text in references]],
        tokenize="none",
    )
    assert (
        first.counts == sacrebleu.corpus_bleu(translations, [references], tokenize=tokenizer).counts
    )


def test_unknown_tokens_stay_whole() -> None:
    assert cut("今UNKNOWNTOKENINREF日", "char").split() == ["今", "UNKNOWNTOKENINREF", "日"]


def test_validations_and_evaluations_score_alike(japanese: PreparedData, tmp_path: Path) -> None:
    objectives = {"metric": "bleu", "bleu_tokenizer": "char"}
    study = load_study(str(write(tmp_path, japanese.folder, {"objectives": objectives})))
    run = study.jobs.confirmation(1, study.baseline, [1]).runs[0]

    args = options.parse_args_and_arch(options.get_training_parser(), list(run.command[1:]))
    task: Any = tasks.setup_task(args)
    task.build_model(args)
    task.load_dataset("test")
    sample = task.dataset("test").collater([task.dataset("test")[i] for i in range(2)])
    # Of each sentence the model leaves a character out.
    tokens = [torch.cat([row[row != 1][:4], row[row != 1][5:]]) for row in sample["target"]]
    task.inference_step = lambda *_, **__: [[{"tokens": row}] for row in tokens]
    validated = task._inference_with_bleu(task.sequence_generator, sample, None)

    texts = [task.target_dictionary.string(row, "sentencepiece") for row in tokens]
    order = [REFERENCES[index] for index in sample["id"]]
    wanted = sacrebleu.corpus_bleu(texts, [order], tokenize="char")
    assert validated.counts == wanted.counts and 60 < wanted.score < 95
    assert sacrebleu.corpus_bleu(texts, [order]).score < 1

    words = [*run.evaluation[1:], "--path", "none.pt"]
    parsed = options.parse_args_and_arch(options.get_generation_parser(), words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fairseq uses hydra as it was
        cfg = convert_namespace_to_omegaconf(parsed)
    scorer: Any = scoring.build_scorer(cfg.scoring, None)
    for text, reference in zip(texts, order, strict=True):
        scorer.add_string(reference, text)
    assert f"BLEU = {wanted.score:.2f} " in scorer.result_string()


def test_a_language_without_spaces_is_told(
    japanese: PreparedData, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    assert spaces_per_character(japanese) == 0
    assert "ja has hardly a space" in advice("13a", japanese)
    assert "set objectives.bleu_tokenizer to char" in advice("13a", japanese)
    assert advice("char", japanese) == advice("13a", tiny_translation) == ""
    reverse = PreparedData(folder=japanese.folder, languages=("ja", "en"))
    assert advice("13a", reverse) == ""


def test_13a_is_what_it_was() -> None:
    assert [name for name, _ in validation_flags("13a")] == [
        "eval-bleu", "eval-bleu-args", "eval-bleu-detok",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tokenizer", "arguments", "key", "message"),
    [
        ("ja-mecab", {}, "objectives.bleu_tokenizer", r"pip install 'sacrebleu\[ja\]'"),
        ("char", {"eval-bleu-detok": "moses"}, "training.arguments.eval-bleu-detok", "leave one"),
        ("spm", {}, "objectives.bleu_tokenizer", "'13a', 'intl'"),
    ],
)
def test_tokenizers_that_cannot_be_had(
    tokenizer: BleuTokenizer,
    arguments: dict[str, str],
    key: str,
    message: str,
    tmp_path: Path,
    tiny_translation: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "MeCab", None)
    changes: dict[str, Any] = {"objectives": {"bleu_tokenizer": tokenizer}}
    changes |= {f"training/arguments/{name}": value for name, value in arguments.items()}
    with pytest.raises(ConfigError, match=f"{key}: .*{message}"):
        load_study(str(write(tmp_path, tiny_translation.folder, changes)))
