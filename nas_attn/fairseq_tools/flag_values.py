"""Judges of what a study gives to a flag of fairseq-train: numbers, words and literals.

Nothing of fairseq is asked, and nothing is evaluated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from nas_attn.literals import read_literal

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
WHOLE_NUMBER = re.compile(r"-?(0|[1-9]\d*)", re.ASCII)
EPOCHS = re.compile(r"\d{1,9}(-\d{1,9}|(,\d{1,9})*)", re.ASCII)
MOST = 2**31 - 1
"""The largest whole number that every flag of fairseq takes."""

Judge = Callable[[Any], str]
"""Takes the value as the study has it; gives what is wrong with it, or nothing."""


def between(
    low: float, high: float, text: str, *, open_low: bool = False, open_high: bool = False
) -> Judge:
    """Numbers from `low` to `high`; `text` says so."""

    def judge(value: Any) -> str:
        if isinstance(value, bool):
            return f"needs a value: {text}"
        if NUMBER.fullmatch(str(value)):
            number = float(value)
            above = low < number if open_low else low <= number
            if above and (number < high if open_high else number <= high):
                return ""
        return f"must be {text}, but is {value!r}"

    return judge


def whole(low: int, high: int, text: str) -> Judge:
    """Whole numbers from `low` to `high`; `text` says so."""
    within = between(low, high, text)

    def judge(value: Any) -> str:
        if isinstance(value, bool) or WHOLE_NUMBER.fullmatch(str(value)):
            return within(value)
        return f"must be {text}, but is {value!r}"

    return judge


def literal(check: Callable[[Any], bool], text: str) -> Judge:
    """Values that fairseq evaluates: a literal that `check` takes."""

    def judge(value: Any) -> str:
        if not isinstance(value, bool):
            try:
                parsed = read_literal(str(value))
            except ValueError:
                parsed = None
            if parsed is not None and check(parsed):
                return ""
        return f"must be {text}, but is {value!r}"

    return judge


def is_number(value: Any, low: float, high: float = math.inf) -> bool:
    """Whether a literal is a finite number in a range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return bool(low <= value <= high and abs(value) < math.inf)


def list_of(item: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    """A check of a list, or of one item alone where no length is given."""

    def check(parsed: Any) -> bool:
        items = parsed if isinstance(parsed, tuple | list) else [parsed]
        if length is not None and (len(items) != length or items is not parsed):
            return False
        return len(items) > 0 and all(item(each) for each in items)

    return check


def is_count(value: Any) -> bool:
    """Whether a literal is a whole number from 1."""
    return isinstance(value, int) and is_number(value, 1, MOST)


def is_schedule(parsed: Any) -> bool:
    """A dictionary of rates by epochs or updates: '3', '1-5' or '1,2'."""
    if not isinstance(parsed, dict):
        return False
    names = all(isinstance(name, str) and EPOCHS.fullmatch(name) for name in parsed)
    return names and all(is_number(rate, 0) for rate in parsed.values())


def is_filters(parsed: Any) -> bool:
    """A list of pairs of width and number."""
    pair = list_of(is_count, 2)
    return isinstance(parsed, list) and len(parsed) > 0 and all(pair(each) for each in parsed)


def json_object(names: frozenset[str], languages: frozenset[str] = frozenset()) -> Judge:
    """JSON objects of these options; some are languages, all others numbers or switches."""

    def judge(value: Any) -> str:
        try:
            parsed = json.loads(str(value))
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict):
            return f"must be a JSON object, but is {value!r}"
        for name, option in parsed.items():
            if name not in names | languages:
                return f"has no option {name!r}; there are {', '.join(sorted(names | languages))}"
            if name in languages:
                if not isinstance(option, str) or not WORD.fullmatch(option):
                    return f"{name} must be a language, but is {option!r}"
                continue
            if not isinstance(option, bool) and not is_number(option, -MOST, MOST):
                return f"{name} must be a number, true or false, but is {option!r}"
        return ""

    return judge


def one_of(*words: str, switch: bool = False) -> Judge:
    """A few words; true and false too, if it is a switch."""

    def judge(value: Any) -> str:
        if (switch and isinstance(value, bool)) or value in words:
            return ""
        return f"must be one of {', '.join(words)}, but is {value!r}"

    return judge


def word(value: Any) -> str:
    """A word of which fairseq knows a few, and says which."""
    if isinstance(value, bool) or not WORD.fullmatch(str(value)):
        return f"must be a word, but is {value!r}"
    return ""


def words(value: Any) -> str:
    """Words with commas between them."""
    if isinstance(value, bool) or not all(WORD.fullmatch(word) for word in str(value).split(",")):
        return f"must be words with commas between them, but is {value!r}"
    return ""


def folder_name(value: Any) -> str:
    """A folder's name, perhaps of several parts."""
    parts = str(value).split("/")
    if isinstance(value, bool) or not all(WORD.fullmatch(part) for part in parts):
        return f"must be a folder's name, which is made beside each trial's logs, not {value!r}"
    return ""


def switch(value: Any) -> str:
    """True or false."""
    return "" if isinstance(value, bool) else f"takes no value: true or false, not {value!r}"


def without(judge: Judge, words: frozenset[str], why: str) -> Judge:
    """What a judge takes, without some words."""
    return lambda value: f"{value}: {why}" if value in words else judge(value)


COUNT = whole(1, MOST, "a whole number from 1")
WHOLE = whole(0, MOST, "a whole number from 0")
UNDER_1 = between(0, 1, "at least 0 and less than 1", open_high=True)
SHARE = between(0, 1, "from 0 to 1")
POSITIVE = between(0, math.inf, "greater than 0", open_low=True, open_high=True)
FROM_0 = between(0, math.inf, "at least 0", open_high=True)
FINITE = between(-math.inf, math.inf, "a finite number", open_low=True, open_high=True)
BETAS = literal(list_of(lambda x: is_number(x, 0) and x < 1, 2), "two numbers: (0.9, 0.98)")
RATES = literal(
    list_of(lambda x: is_number(x, 0) and x > 0),
    "one number above 0, or one for each epoch: 0.0005 or '0.0005,0.0001'",
)
