"""What numpy 2 took away, for the modules of fairseq 0.12.3 that still use it.

They are given to these modules alone: numpy itself stays as it is.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np
from fairseq.data import data_utils, language_pair_dataset, token_block_dataset
from fairseq.modules import dynamic_crf_layer


def _percentile(*args: Any, interpolation: str = "linear", **kwargs: Any) -> Any:
    """The argument `method` by its former name."""
    return np.percentile(*args, method=interpolation, **kwargs)  # type: ignore[call-overload]


FORMER = {
    "compat": types.SimpleNamespace(long=int),
    "int": int,
    "float": float,
    "percentile": _percentile,
}
"""What the names were."""

MENDED: tuple[Any, ...] = (
    token_block_dataset,  # --sample-break-mode eos
    language_pair_dataset,  # --num-batch-buckets
    data_utils,  # --num-batch-buckets, masks of spans
    dynamic_crf_layer,
)


class _Numpy(types.ModuleType):
    """numpy and its former names."""

    def __getattr__(self, name: str) -> Any:
        return FORMER[name] if name in FORMER else getattr(np, name)


for _module in MENDED:
    _module.np = _Numpy("numpy")
