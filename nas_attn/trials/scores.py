"""What the processes of a trial have printed: scores, plans, seconds, the ends of logs."""

from __future__ import annotations

import re
from pathlib import Path

from nas_attn.errors import NasAttnError, TrialFileError
from nas_attn.plan import AttentionPlan
from nas_attn.trials.failures import last_lines

TAIL_BYTES = 256 * 1024
"""So much of a log's end is read, at most; what counts stands there."""
NUMBER = r"(\d+(?:\.\d+)?)"


def end_of_log(path: Path, after: int = 0) -> str:
    """The end of a log, in whole lines.

    Args:
        path: Path of the log; one that is not there is `(no log)`.
        after: Bytes at its beginning that belong to others.

    Raises:
        TrialFileError: it cannot be read.
    """
    try:
        with path.open("rb") as log:
            begin = max(after, log.seek(0, 2) - TAIL_BYTES)
            log.seek(begin)
            text = log.read(TAIL_BYTES).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return "(no log)"
    except OSError as error:
        raise TrialFileError(f"{path} cannot be read: {error.strerror}") from error
    whole = text.partition("\n")[2] if begin > after else text
    return whole or text


def parse_scores(output: str) -> dict[str, float]:
    """The scores that an evaluation has printed.

    `bleu` of fairseq-generate; `nll_loss` (in bits) and `ppl` of fairseq-eval-lm; `loss`,
    `nll_loss`, `ppl` and `accuracy` of fairseq-validate, as far as its criterion has them.

    Raises:
        NasAttnError: there is none.
    """
    bleu = re.findall(rf"\bBLEU\S* = {NUMBER}", output)
    if bleu:
        return {"bleu": float(bleu[-1])}
    perplexity = re.findall(rf"Loss \(base 2\): {NUMBER}, Perplexity: {NUMBER}", output)
    if perplexity:
        loss, ppl = perplexity[-1]
        return {"nll_loss": float(loss), "ppl": float(ppl)}
    validation = re.findall(r"\| valid on '.*' subset (\|.*)", output)
    if validation:
        pairs = re.findall(rf"\| (loss|nll_loss|ppl|accuracy) {NUMBER}(?![^ \n])", validation[-1])
        if pairs:
            return {name: float(value) for name, value in pairs}
    raise NasAttnError(f"it printed no score:\n{last_lines(output)}")


def parse_plan(output: str) -> AttentionPlan:
    """The plan of what is left, from what `nas-attn prune` has printed.

    Raises:
        NasAttnError: there is none, or it is malformed.
    """
    plans = re.findall(r"^plan: (\{.*)$", output, re.MULTILINE)
    if not plans:
        raise NasAttnError(f"it printed no plan:\n{last_lines(output)}")
    return AttentionPlan.parse(plans[-1])


def parse_decoding_seconds(output: str) -> float:
    """Seconds for a sentence, from what fairseq-generate has printed; loading is not counted.

    Raises:
        NasAttnError: it has not said how fast it was.
    """
    # The rate has more digits than the time, which is rounded to tenths of a second.
    rates = re.findall(rf"Translated .* sentences \(.*\) in .*s \({NUMBER} sentences/s", output)
    if not rates or float(rates[-1]) == 0:
        raise NasAttnError(f"it did not say how fast it decodes:\n{last_lines(output)}")
    return 1.0 / float(rates[-1])
