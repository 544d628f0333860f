"""The short training that ends every trial of a search with a warm start."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from nas_attn.config_model import Scalar
from nas_attn.fairseq_tools.arguments import last_epoch_and_update, training_arguments
from nas_attn.fairseq_tools.config import TrainingConfig
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.flags import dashed, distilled, given

WARM_UP = 0.1
"""Of the updates of fine-tuning, in which the learning rate rises."""


def fine_tuning(
    config: TrainingConfig,
    updates: int,
    *,
    learning_rate: float,
    replaced: Mapping[str, Scalar],
    is_taught: bool = False,
) -> TrainingConfig:
    """A training's arguments for fine-tuning: few updates, and a learning rate that falls to 0.

    Args:
        config: Configuration of the training, whose arguments are right.
        updates: Number of updates of fine-tuning.
        learning_rate: The highest, a share of the training's.
        replaced: Further arguments, which replace others.
        is_taught: Whether a teacher is asked: the criterion is the distilled one, and lacks nothing
            but `--teacher`.
    """
    arguments, replaced = given(config.arguments), given(replaced)
    parsed = training_arguments(config)
    gone = {"max-epoch", "lr", *_flags_of_schedule(parsed.lr_scheduler)}
    kept = {name: value for name, value in arguments.items() if name not in gone}
    kept |= {"max-update": updates, "lr": learning_rate * parsed.lr[0]}
    if "lr-scheduler" not in replaced:
        kept |= {
            "lr-scheduler": "polynomial_decay",
            "warmup-updates": max(1, round(WARM_UP * updates)),
            "total-num-update": updates,
        }
    tuned = kept | replaced
    if is_taught:
        tuned["criterion"] = distilled(str(tuned.get("criterion", "cross_entropy")))
    return config.model_copy(update={"arguments": tuned})


def count_updates(config: TrainingConfig, data: PreparedData, *, gpus: int = 1) -> int:
    """Updates of a training; epochs are taken to be as long as the first.

    Args:
        config: Configuration of the training.
        data: The data set.
        gpus: GPUs that a training has.
    """
    from fairseq import tasks, utils

    last_epoch, last_update = last_epoch_and_update(config)
    if last_epoch is None:
        assert last_update is not None  # one of them is always given
        return last_update
    args = training_arguments(config)
    args.data = str(data.folder)
    if data.languages:
        args.source_lang, args.target_lang = data.languages
    task: Any = tasks.setup_task(args)
    task.load_dataset(args.train_subset, epoch=1)
    batches = task.get_batch_iterator(
        task.dataset(args.train_subset),
        max_tokens=args.max_tokens,
        max_sentences=args.batch_size,
        max_positions=utils.resolve_max_positions(task.max_positions(), args.max_tokens),
        ignore_invalid_inputs=True,
        required_batch_size_multiple=1,
        seed=config.seeds[0],
        num_shards=gpus,
        epoch=1,
    )
    updates: int = last_epoch * math.ceil(len(batches) / args.update_freq[0])
    return updates if last_update is None else min(updates, last_update)


def _flags_of_schedule(name: str) -> set[str]:
    """The flags that belong to one of fairseq's schedules of the learning rate."""
    from fairseq.optim.lr_scheduler import LR_SCHEDULER_DATACLASS_REGISTRY

    schedule = LR_SCHEDULER_DATACLASS_REGISTRY[name]
    return {dashed(field.name) for field in dataclasses.fields(schedule)}
