"""Counting starts without what it does not need, what is deferred computes the same, and logging
is left to the program."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import json, sys
from nas_attn.fairseq_tools.models import count_architecture
flags = ["--share-all-embeddings"]
size = count_architecture("multi_head_transformer_wmt_en_de", 32768, None, flags)
loaded = sorted({"torch._dynamo", "sklearn", "pandas"} & set(sys.modules))
from fairseq.criterions.sentence_prediction import f1_score, _matthews_corrcoef
from fairseq.tasks.audio_classification import sklearn_metrics
import sklearn.metrics
truth, guess = [1, 0, 1, 1], [1, 1, 1, 0]
print(json.dumps({
    "total": size.total,
    "loaded": loaded,
    "same": [
        f1_score(y_true=truth, y_pred=guess) == sklearn.metrics.f1_score(truth, guess),
        _matthews_corrcoef(truth, guess) == sklearn.metrics.matthews_corrcoef(truth, guess),
        sklearn_metrics.roc_auc_score(truth, guess) == sklearn.metrics.roc_auc_score(truth, guess),
    ],
}))
"""


def test_counting_imports_neither_the_compiler_nor_scikit_learn() -> None:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"total": 60_915_712, "loaded": [], "same": [True] * 3}


LOGGING = """
import logging
from nas_attn.fairseq_tools.arguments import parse_arguments
parse_arguments("multi_head_transformer", [])
import fairseq.tasks.text_to_speech
from fairseq.models.wav2vec import wav2vec2_classification
print(logging.root.handlers, logging.root.level == logging.WARNING)
logging.basicConfig(level=logging.INFO)
print(len(logging.root.handlers), logging.root.level == logging.INFO)
"""


def test_fairseq_leaves_the_logging_of_a_notebook_alone() -> None:
    command = [sys.executable, "-W", "ignore", "-c", LOGGING]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[] True", "1 True"], done.stderr
