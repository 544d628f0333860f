"""Amounts as people write them: 500000, 500k, 20M, 1.5M, 2e7."""

from __future__ import annotations

import re
from decimal import Decimal

from nas_attn.errors import RefusedError

AMOUNT = re.compile(r"(\d{1,18}(?:\.\d{1,18})?(?:[eE]\+?\d)?)([kMG]?)", re.ASCII)
FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def parse_amount(text: str, option: str) -> int:
    """Read an amount: a number above nought, perhaps with k (thousands), M (millions) or G.

    Args:
        text: such as 1.5M; parts of one are dropped.
        option: that it was given to, for the message.

    Raises:
        RefusedError: the text is no such number.
    """
    found = AMOUNT.fullmatch(text.strip())
    # Decimal, for as a float 0.29M would be one less than 290000.
    amount = int(Decimal(found[1]) * FACTORS[found[2]]) if found else 0
    if amount < 1:
        raise RefusedError(
            f"{option}: {text!r} is no amount; write a number such as 500000, 500k, 20M or 1.5M"
        )
    return amount
