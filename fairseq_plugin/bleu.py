"""sacreBLEU's tokenizers for `--eval-bleu`, which knows 13a only.

`--eval-bleu-detok sacrebleu --eval-bleu-detok-args '{"sacrebleu_tokenizer": "char"}'
--eval-tokenized-bleu` scores translations as `fairseq-generate --scoring sacrebleu
--sacrebleu-tokenizer char` does.
"""

import re
from dataclasses import dataclass, field

from fairseq.data.encoders import register_tokenizer
from fairseq.dataclass import FairseqDataclass
from fairseq.scoring.tokenizer import EvaluationTokenizer

UNKNOWN = re.compile(r"(UNKNOWNTOKENIN(?:REF|HYP))")
"""As the task writes unknown tokens: differently in translations and references, so that none
counts as right. Cut into characters they would be nearly equal."""


@dataclass
class SacrebleuTokenizerConfig(FairseqDataclass):
    """Options of `SacrebleuTokenizer`."""

    sacrebleu_tokenizer: str = field(  # its type is read, so annotations are no text here
        default="13a", metadata={"help": "one of sacreBLEU's tokenizers"}
    )


@register_tokenizer("sacrebleu", dataclass=SacrebleuTokenizerConfig)
class SacrebleuTokenizer:
    """Cuts translations and references as sacreBLEU does, for a BLEU that cuts no further.

    Args:
        cfg: Configuration with the tokenizer's name.
    """

    def __init__(self, cfg: SacrebleuTokenizerConfig) -> None:
        self._tokenizer = EvaluationTokenizer(tokenizer_type=cfg.sacrebleu_tokenizer)

    def encode(self, text: str) -> str:
        return text

    def decode(self, text: str) -> str:
        """The tokens, with spaces between."""
        parts = UNKNOWN.split(text)
        parts[::2] = [self._tokenizer.tokenize(part) for part in parts[::2]]
        return " ".join(parts)
