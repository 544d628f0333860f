"""A trained model that teaches another in its training: read safely, and kept apart from it."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, models, utils
from fairseq.data import Dictionary
from fairseq.tasks import TASK_REGISTRY
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from nas_attn.errors import UsageError
from nas_attn.literals import code_in

from .bfloat16 import products_as_in

logger = logging.getLogger(__name__)

AS_TRAINED: dict[str, Any] = {
    "checkpoint_activations": False,
    "offload_activations": False,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "encoder_embed_path": None,
    "decoder_embed_path": None,
}
"""Arguments of a model that are for its training alone. Layers that may be left out draw numbers
in evaluation too, which would change those that the student's dropout draws."""


class Teacher:
    """A checkpoint's model, which is asked for its outputs and never trained.

    It is no module and holds its model out of sight of any, so that it is neither saved, counted,
    optimised nor moved with the criterion that asks it.

    Args:
        path: Checkpoint of a model of fairseq's or of the plugin's; None if none was given.
        task: Task of the student, whose dictionaries and batches the model must fit.
    """

    def __init__(self, path: str | None, task: Any) -> None:
        self._path, self._task = path, task
        self._model: Any = None

    def meet(self, student: nn.Module) -> None:
        """Load the model where that is not done yet, on the student's device, in its precision.

        Raises:
            UsageError: there is no teacher, or none for this student; says what to do.
        """
        like = next(student.parameters())
        if self._model is None:
            self._model = self._load(student)
        own = next(self._model.parameters())
        if (own.device, own.dtype) != (like.device, like.dtype):
            self._model.to(like.device, like.dtype)

    def __call__(self, student: nn.Module, *args: Any, **named: Any) -> Tensor:
        """The logits for a batch, without any gradient.

        Args:
            student: Model that the batch is for.
            args: What the student was called with.
            named: The same, by names.
        """
        self.meet(student)
        with torch.no_grad(), products_as_in(student):
            logits: Tensor = self._model(*args, **named)[0]
        return logits

    def _load(self, student: Any) -> Any:
        if not self._path:
            raise UsageError(
                "the criterion asks a teacher, but there is none: give --teacher, the checkpoint "
                "of a trained model with the same dictionaries, or take the criterion without "
                "distilled_"
            )
        path = Path(self._path)
        state = _read(path)
        _check_task(path, state["cfg"]["task"], self._task)
        arguments = _for_evaluation(state["cfg"]["model"])
        model = _build(path, arguments, state["model"], self._task)
        task_takes = self._task.max_positions()
        taken = utils.resolve_max_positions(task_takes, student.max_positions())
        if utils.resolve_max_positions(taken, model.max_positions()) != taken:
            raise UsageError(
                f"the teacher {path} takes {model.max_positions()} tokens at most, but this "
                f"training has sentences of {taken}: set --max-source-positions and "
                "--max-target-positions (language models: --tokens-per-sample) to what it takes"
            )
        count = sum(parameter.numel() for parameter in model.parameters())
        logger.info("teacher: %s, %d parameters, not trained", path, count)
        return model


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint's settings and weights; only plain data is unpickled."""
    if not path.is_file():
        raise UsageError(f"there is no checkpoint {path}, which --teacher names")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        settings = state.get("args") or state["cfg"]["model"]
        if isinstance(settings, Namespace | DictConfig | dict):
            code = code_in(vars(settings) if isinstance(settings, Namespace) else settings)
            if code is not None:
                raise ValueError(f"its argument {code} is no plain value")
        if state.get("args") is not None:
            state = checkpoint_utils._upgrade_state_dict(state)
        return {"cfg": state["cfg"], "model": dict(state["model"])}
    except Exception as error:  # torch raises many kinds
        why = " ".join(str(error).split())[:300]
        raise UsageError(
            f"the teacher {path} is no checkpoint of fairseq-train that can be read: {why}"
        ) from None


def _for_evaluation(settings: Any) -> Any:
    """A model's arguments without what is for its training."""
    if isinstance(settings, Namespace):
        changes = {name: value for name, value in AS_TRAINED.items() if hasattr(settings, name)}
        return Namespace(**vars(settings) | changes)
    given: Any = OmegaConf.to_container(settings) if isinstance(settings, DictConfig) else settings
    changes = {name: value for name, value in AS_TRAINED.items() if name in given}
    return OmegaConf.create({**given, **changes})


def _build(path: Path, arguments: Any, weights: Mapping[str, Tensor], task: Any) -> Any:
    """The model with its weights, for the dictionaries of a task."""
    try:
        # The student's weights and dropout are drawn as if there were no teacher.
        with torch.random.fork_rng(devices=[]):
            model: Any = models.build_model(arguments, task, from_checkpoint=True)
        own = model.state_dict()
        for name, tensor in weights.items():
            if name in own and own[name].shape != tensor.shape and "embed_tokens" in name:
                raise UsageError(
                    f"the teacher {path} has another vocabulary: {len(tensor)} types, where this "
                    f"training's dictionary has {len(own[name])}; train it on data that were "
                    "binarised with the same dictionaries"
                )
        model.load_state_dict(dict(weights), strict=True)
    except UsageError:
        raise
    except Exception as error:  # fairseq and torch raise many kinds
        why = " ".join(str(error).split())[:500]
        raise UsageError(f"the teacher {path} is of no use for this training: {why}") from None
    if getattr(getattr(model, "decoder", None), "adaptive_softmax", None) is not None:
        raise UsageError(
            f"the teacher {path} has an adaptive softmax, which gives no logits of all types: "
            "take one without --adaptive-softmax-cutoff"
        )
    model.requires_grad_(False)
    return model.eval()


def _check_task(path: Path, settings: Any, task: Any) -> None:
    """See that a checkpoint's task, languages and dictionaries are those of a training."""
    known = vars(settings) if isinstance(settings, Namespace) else dict(settings)
    theirs = str(known.get("_name") or known.get("task"))
    ours = next(name for name, cls in TASK_REGISTRY.items() if cls is type(task))
    theirs, ours = (name.removeprefix("reported_") for name in (theirs, ours))
    if theirs != ours:
        raise UsageError(
            f"the teacher {path} was trained for the task {theirs}, but this training is for "
            f"{ours}: take a checkpoint of the same task"
        )
    for side in ("source_lang", "target_lang"):
        own = getattr(task.cfg, side, None)
        if own is not None and known.get(side) not in (None, own):
            raise UsageError(
                f"the teacher {path} was trained from {known.get('source_lang')} to "
                f"{known.get('target_lang')}, but this training is from {task.cfg.source_lang} to "
                f"{task.cfg.target_lang}: take a checkpoint of the same languages"
            )
    for file, found, dictionary in _dictionaries(path, known, task):
        # Tasks add symbols of their own, such as <mask>, at the end.
        if found.symbols != dictionary.symbols[: len(found.symbols)]:
            raise UsageError(
                f"the teacher {path} has another vocabulary: its dictionary {file} is not this "
                "training's; train it on data that were binarised with the same dictionaries"
            )


def _dictionaries(
    path: Path, settings: Mapping[str, Any], task: Any
) -> Iterator[tuple[Path, Dictionary, Dictionary]]:
    """A checkpoint's dictionaries as far as they are still there, each with the task's own."""
    data = str(settings.get("data") or ".").split(":")[0]
    # A checkpoint that was exported has its dictionaries beside it.
    folder = path.parent if data == "." else Path(data)
    for side in ("source", "target"):
        # Checkpoints name no languages that fairseq-train was not given.
        language = settings.get(f"{side}_lang") or getattr(task.cfg, f"{side}_lang", None)
        file = folder / (f"dict.{language}.txt" if language else "dict.txt")
        dictionary = getattr(task, f"{side}_dictionary", None)
        try:
            found = Dictionary.load(str(file)) if dictionary and file.is_file() else None
        except Exception:  # it is no dictionary any more, which says nothing of the checkpoint
            continue
        if found is not None:
            yield file, found, dictionary
