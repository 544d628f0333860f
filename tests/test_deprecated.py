"""Former names are accepted with a warning that says the new one."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from nas_attn._deprecated import renamed_key, renamed_names, renamed_option
from nas_attn.errors import UsageError


class Objectives(BaseModel):
    metric: str = "loss"

    @model_validator(mode="before")
    @classmethod
    def _former(cls, data: Any) -> Any:
        return renamed_key(data, "loss", "metric", section="objectives")


def test_a_former_key_is_read_as_the_new_one() -> None:
    with pytest.warns(FutureWarning, match=r"key objectives\.loss is called objectives\.metric"):
        assert Objectives.model_validate({"loss": "bleu"}).metric == "bleu"
    assert Objectives.model_validate({"metric": "bleu"}).metric == "bleu"
    with pytest.raises(ValidationError, match="loss is the former name of metric"):
        Objectives.model_validate({"loss": "bleu", "metric": "bleu"})
    untouched = {"metric": "bleu"}
    assert renamed_key(untouched, "loss", "metric") is untouched
    assert renamed_key(None, "loss", "metric") is None


def test_the_line_that_gives_a_former_key_is_named() -> None:
    with pytest.warns(FutureWarning) as seen:
        Objectives.model_validate({"loss": "bleu"})
    assert seen[0].filename == __file__, "and not pydantic's"


def test_order_of_keys_is_kept() -> None:
    with pytest.warns(FutureWarning):
        assert list(renamed_key({"a": 1, "old": 2, "b": 3}, "old", "new")) == ["a", "new", "b"]


def test_a_former_option_is_read_as_the_new_one() -> None:
    with pytest.warns(FutureWarning, match="option --old is called --new now"):
        assert renamed_option("--old", "--new", 3, None) == 3
    with pytest.warns(FutureWarning):
        assert renamed_option("--old", "--new", False, None) is False
    assert renamed_option("--old", "--new", None, 4) == 4
    assert renamed_option("--old", "--new", None, None) is None
    with pytest.raises(UsageError, match="--old is the former name of --new"):
        renamed_option("--old", "--new", 3, 4)


def test_a_former_name_of_a_module_is_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("some_module")
    module.New = object()
    module.__getattr__ = renamed_names("some_module", {"Old": "New"})
    monkeypatch.setitem(sys.modules, "some_module", module)
    with pytest.warns(FutureWarning, match=r"some_module\.Old is called some_module\.New") as seen:
        assert module.Old is module.New
    assert seen[0].filename == __file__, "the line that uses the name"
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        _ = module.Other
