"""The tokenizers by which BLEU may be computed."""

from __future__ import annotations

from typing import Literal

BleuTokenizer = Literal["13a", "intl", "zh", "char", "none", "ja-mecab", "ko-mecab"]
"""sacreBLEU's tokenizers, but for those that fetch a model from the network."""

DEFAULT: BleuTokenizer = "13a"
