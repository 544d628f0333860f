"""Forms in which a trained model is handed out; each is checked against the model itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from nas_attn.fairseq_tools.checkpoints import save_checkpoint
from nas_attn.fairseq_tools.ctranslate2_model import ctranslate2_tokens, write_ctranslate2
from nas_attn.fairseq_tools.safetensors_model import load_model, write_safetensors
from nas_attn.fairseq_tools.same_tokens import Check, Probe
from nas_attn.fairseq_tools.stock import stock_state
from nas_attn.fairseq_tools.trained import TrainedModel

Format = Literal["plugin", "fairseq", "ctranslate2", "safetensors"]
FORMATS: tuple[Format, ...] = get_args(Format)
CHECKPOINT, PLAN = "checkpoint.pt", "plan.json"


def write_model(trained: TrainedModel, data: Path, folder: Path, form: Format) -> Check | None:
    """Write a model and its plan into a folder, and see that it writes what the model does.

    Args:
        trained: Model of the plugin, with arguments that name no places.
        data: Its data set; the validation split checks all forms but `plugin`.
        folder: Folder that is there.
        form: `plugin`, a checkpoint for fairseq with the plugin; `fairseq`, one for fairseq alone;
            `ctranslate2`, a folder for CTranslate2; or `safetensors`, weights and JSON.

    Returns:
        What the check found; None for `plugin`, which is the model itself.

    Raises:
        UsageError: The model has no such form, or cannot be checked; says why.
        NasAttnError: It writes other tokens.
    """
    plan = json.dumps(trained.plan.to_json(), indent=2) + "\n"
    (folder / PLAN).write_text(plan, encoding="utf-8")
    if form == "plugin":
        save_checkpoint(trained.state, folder / CHECKPOINT)
        return None
    writers: dict[Format, Callable[[TrainedModel, Path, Path], None]] = {
        "fairseq": _write_fairseq,
        "ctranslate2": _write_ctranslate2,
        "safetensors": _write_safetensors,
    }
    writers[form](trained, data, folder)
    return check_model(trained, data, folder, form)


def check_model(trained: TrainedModel, data: Path, folder: Path, form: Format) -> Check:
    """Compare what an export writes on the validation split with what the model does.

    Args:
        trained: Model that was exported.
        data: Its data set.
        folder: Folder of the export.
        form: Form of the export.

    Raises:
        UsageError: There is no validation split.
        NasAttnError: It writes other tokens.
    """
    probe = Probe(trained, data)
    if form == "ctranslate2":
        return probe.compare(ctranslate2_tokens(probe, folder))
    if form == "safetensors":
        return probe.compare(probe.tokens_of(load_model(folder)))
    return probe.compare(probe.tokens_of(load_as_fairseq(folder / CHECKPOINT, data)))


def load_as_fairseq(path: Path, data: Path) -> nn.Module:
    """A checkpoint's model as fairseq's own commands load it."""
    from fairseq import checkpoint_utils

    models, _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(path)], arg_overrides={"data": str(data)}
    )
    model: nn.Module = models[0]
    return model.eval()


def _write_fairseq(trained: TrainedModel, data: Path, folder: Path) -> None:
    save_checkpoint(stock_state(trained), folder / CHECKPOINT)


def _write_ctranslate2(trained: TrainedModel, data: Path, folder: Path) -> None:
    made = folder / "made"
    write_ctranslate2(trained, data, made)
    for path in made.iterdir():
        path.rename(folder / path.name)
    made.rmdir()


def _write_safetensors(trained: TrainedModel, data: Path, folder: Path) -> None:
    write_safetensors(trained, folder)
