"""Options whose text is read."""

from __future__ import annotations

import pytest

from nas_attn.cli.options import parse_limits
from nas_attn.errors import UsageError


def test_limits_are_read() -> None:
    assert parse_limits(["cache_bytes=4k", "total=1.5M", "total=20"]) == {
        "cache_bytes": 4000,
        "total": 20,
    }
    assert parse_limits([]) == {}


@pytest.mark.parametrize("text", ["", "cache_bytes", "cache=3", "total=many", "=4", "total=-1"])
def test_other_limits_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--limit.*(write NAME=NUMBER|is no amount)"):
        parse_limits([text])
