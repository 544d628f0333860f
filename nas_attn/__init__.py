"""Search for attention schemes that share weights among heads, trained with fairseq.

    import nas_attn

    results = nas_attn.search("demo", trials=12)
    results.front()                       # pandas.DataFrame
    nas_attn.open_study("demo").report()  # also while the search runs

`nas_attn.api` says what each of these does. Attention, plans, search spaces and the conversion of
PyTorch models need torch alone; searches need `pip install "nas-attn[search]"`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas_attn.api import Results, open_study, search
    from nas_attn.attention import build_attention
    from nas_attn.conversion import convert_model, load_converted, save_converted
    from nas_attn.fronts import predict_front
    from nas_attn.known_cost.optuna_sampler import KnownCostSampler
    from nas_attn.plan import AttentionPlan
    from nas_attn.space import SearchSpace
    from nas_attn.study import Study

__version__ = "0.1.0"

_MODULES = {
    "AttentionPlan": "nas_attn.plan",
    "KnownCostSampler": "nas_attn.known_cost.optuna_sampler",
    "Results": "nas_attn.api",
    "SearchSpace": "nas_attn.space",
    "Study": "nas_attn.study",
    "build_attention": "nas_attn.attention",
    "convert_model": "nas_attn.conversion",
    "load_converted": "nas_attn.conversion",
    "open_study": "nas_attn.api",
    "predict_front": "nas_attn.fronts",
    "save_converted": "nas_attn.conversion",
    "search": "nas_attn.api",
}
"""Where the public names are; they are imported when they are asked for, since torch is slow."""

__all__ = [
    "AttentionPlan",
    "KnownCostSampler",
    "Results",
    "SearchSpace",
    "Study",
    "__version__",
    "build_attention",
    "convert_model",
    "load_converted",
    "open_study",
    "predict_front",
    "save_converted",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
