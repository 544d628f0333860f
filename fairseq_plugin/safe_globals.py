"""What torch may unpickle from a fairseq checkpoint.

fairseq stores argparse namespaces, numpy meters and omegaconf containers beside the weights, and
torch loads weights only. These plain data types are allowed on top; nothing that runs code is.
"""

import argparse
import collections
import importlib
import typing

import numpy as np
import omegaconf
import torch
from fairseq.distributed.utils import _TensorPlaceholder
from fairseq.logging import meters
from omegaconf import base, nodes

NUMPY_DTYPES = ("bool", "int32", "int64", "float32", "float64")
METERS = ("AverageMeter", "TimeMeter", "StopwatchMeter")

multiarray: typing.Any = importlib.import_module("numpy._core.multiarray")

SAFE_GLOBALS = (
    # A model registered the legacy way keeps its arguments in a namespace.
    argparse.Namespace,
    # Meters of --eval-bleu.
    np.ndarray,
    np.dtype,
    multiarray._reconstruct,
    multiarray.scalar,
    # The same by the names that numpy 1 wrote.
    (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    (multiarray.scalar, "numpy.core.multiarray.scalar"),
    *(type(np.dtype(name)) for name in NUMPY_DTYPES),
    # Meters that versions of fairseq before 0.9 kept in their checkpoints.
    *((getattr(meters, name), f"fairseq.meters.{name}") for name in METERS),
    # Resumed state sent from rank 0 to the other processes.
    dict,
    list,
    int,
    collections.defaultdict,
    typing.Any,
    base.ContainerMetadata,
    base.Metadata,
    omegaconf.DictConfig,
    omegaconf.ListConfig,
    nodes.AnyNode,
    _TensorPlaceholder,
)

torch.serialization.add_safe_globals(list(SAFE_GLOBALS))
