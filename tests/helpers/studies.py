"""Study files for tests: small models that train in seconds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

STUDY: dict[str, Any] = {
    "name": "small",
    "data": {"folder": "DATA"},
    "training": {
        "arguments": {
            "encoder-layers": 1,
            "decoder-layers": 1,
            "encoder-embed-dim": 16,
            "decoder-embed-dim": 16,
            "encoder-attention-heads": 4,
            "decoder-attention-heads": 4,
            "share-all-embeddings": True,
            "criterion": "label_smoothed_cross_entropy",
            "optimizer": "adam",
            "lr": 0.003,
            "max-tokens": 512,
            "max-epoch": 1,
        }
    },
    "space": {
        "schemes": {"multi_head": {}, "collaborative": {"shared_dim": [2, 4]}},
    },
    "search": {"trials": 3},
}


def write(folder: Path, data: Path, changes: dict[str, Any] | None = None) -> Path:
    """Write `study.yaml` to a folder.

    Args:
        folder: where to.
        data: the prepared data set of the study.
        changes: new values of `STUDY` by key path, such as `search/trials`; None takes a key out.
    """
    study = copy.deepcopy(STUDY)
    study["data"]["folder"] = str(data)
    for key, value in (changes or {}).items():
        *parents, last = key.split("/")
        section = study
        for parent in parents:
            section = section[parent]
        if value is None:
            del section[last]
        else:
            section[last] = value
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path
