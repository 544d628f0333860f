"""Import fairseq without scikit-learn, for processes that start often.

Two modules of fairseq import scikit-learn for scores of tasks that are rarely trained, and with it
pandas and most of SciPy: a third of the time that importing fairseq takes. Here these two modules
get a stand-in that imports scikit-learn when a score is first computed. It is seen by nobody else.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

WITHOUT = ("fairseq.tasks.audio_classification", "fairseq.criterions.sentence_prediction")
"""Modules of fairseq that get the stand-in."""


def defer_sklearn() -> None:
    """From now on, let fairseq's modules import scikit-learn when they first use it.

    Where fairseq or scikit-learn is imported already, nothing changes.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the modules of `WITHOUT` where they are, and has them executed with the stand-in."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in WITHOUT:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        if "sklearn" in sys.modules:
            super().exec_module(module)
            return
        scores = _Scores("sklearn.metrics")
        package = ModuleType("sklearn")
        package.metrics = scores  # type: ignore[attr-defined]
        stand_ins = {"sklearn": package, "sklearn.metrics": scores}
        sys.modules.update(stand_ins)
        try:
            super().exec_module(module)
        finally:
            for name, stand_in in stand_ins.items():
                if sys.modules.get(name) is stand_in:
                    del sys.modules[name]


class _Scores(ModuleType):
    """Looks like `sklearn.metrics`, and imports it when one of its functions is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def score(*arguments: Any, **keywords: Any) -> Any:
            function = getattr(importlib.import_module("sklearn.metrics"), name)
            return function(*arguments, **keywords)

        return score
