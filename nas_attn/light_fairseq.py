"""Import fairseq without scikit-learn, for processes that start often, and with logging left alone.

Two modules of fairseq import scikit-learn for scores of tasks that are rarely trained, and with it
pandas and most of SciPy: a third of the time that importing fairseq takes. Here these two modules
get a stand-in that imports scikit-learn when a score is first computed. It is seen by nobody else.

Three others set logging up when they are imported, one of them at level DEBUG. In a notebook that
has not done so itself, all that any library logs would be printed from then on.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

WITHOUT = ("fairseq.tasks.audio_classification", "fairseq.criterions.sentence_prediction")
"""Modules of fairseq that get the stand-in."""
LOUD = (
    "fairseq.models.wav2vec.wav2vec2_classification",
    "fairseq.tasks.frm_text_to_speech",
    "fairseq.tasks.text_to_speech",
)
"""Modules of fairseq that set logging up."""


def defer_sklearn() -> None:
    """From now on, let fairseq's modules import scikit-learn when they first use it.

    Where fairseq or scikit-learn is imported already, nothing changes.
    """
    _execute_by(_WithoutScikitLearn, WITHOUT)


def leave_logging() -> None:
    """From now on, let importing fairseq's modules set up no logging; that is the program's."""
    _execute_by(_WithoutLogging, LOUD)


def _execute_by(loader: type[SourceFileLoader], names: Sequence[str]) -> None:
    if not any(isinstance(f, _Finder) and f.loader is loader for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder(loader, names))


class _Finder(MetaPathFinder):
    """Finds some modules where they are, and has them executed by a loader of ours.

    Args:
        loader: Loader that executes them.
        names: Names of the modules.
    """

    def __init__(self, loader: type[SourceFileLoader], names: Sequence[str]) -> None:
        self.loader = loader
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._names:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = self.loader(name, spec.loader.path)
        return spec


class _WithoutScikitLearn(SourceFileLoader):
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


class _WithoutLogging(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        importing, set_up = threading.get_ident(), logging.basicConfig

        def set_up_elsewhere(**settings: Any) -> None:
            if threading.get_ident() != importing:
                set_up(**settings)

        logging.basicConfig = set_up_elsewhere
        try:
            super().exec_module(module)
        finally:
            logging.basicConfig = set_up


class _Scores(ModuleType):
    """Looks like `sklearn.metrics`, and imports it when one of its functions is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def score(*arguments: Any, **keywords: Any) -> Any:
            function = getattr(importlib.import_module("sklearn.metrics"), name)
            return function(*arguments, **keywords)

        return score
