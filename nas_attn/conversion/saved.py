"""Converted models as folders: weights, plan and configuration, and nothing that runs code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_attn import __version__
from nas_attn._imports import require_extra
from nas_attn.conversion.models import PLAN, take_shape
from nas_attn.errors import PlanError, UsageError
from nas_attn.files import write_json, write_whole
from nas_attn.plan import MAX_FILE_BYTES, AttentionPlan

WEIGHTS = "converted.safetensors"
"""Not the name that `from_pretrained` looks for: it would load no attention, and warn only."""
DESCRIPTION = "plan.json"
IMPLEMENTATIONS = ("eager", "sdpa")


def save_converted(model: nn.Module, folder: str | Path) -> None:
    """Write a converted model: safetensors, plan, and the configuration if it has one.

    Args:
        model: Model, or what holds models, that `convert_model` or `Conversions` converted.
        folder: Folder to write to; files of an earlier save there are replaced.

    Raises:
        PlanError: Nothing in the model was converted.
        MissingExtraError: safetensors is not installed.
    """
    require_extra("models")
    from safetensors.torch import save

    plans = {name: vars(part)[PLAN] for name, part in model.named_modules() if PLAN in vars(part)}
    if not plans:
        raise PlanError("the model was not converted: save it as its library does")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = getattr(model, "config", None)
    description: dict[str, Any] = {
        "nas_attn": __version__,
        "plans": {name: plan.to_json() for name, plan in plans.items()},
    }
    if hasattr(config, "to_json_file"):
        import transformers

        description["transformers"] = transformers.__version__
        description["class"] = type(model).__name__
        description["attn_implementation"] = getattr(config, "_attn_implementation", None)
        config.save_pretrained(folder)  # type: ignore[union-attr]
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(folder)  # type: ignore[operator, union-attr]
    write_whole(folder / WEIGHTS, save(_once(model.state_dict()), {"format": "pt"}))
    write_json(folder / DESCRIPTION, description)


def load_converted(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Read a model that `save_converted` wrote, in evaluation mode.

    Args:
        folder: Folder that it is in. Its files are data: no code is loaded from them.
        model: Model as it was before the conversion, of any weights; changed. Left out, one is
            built from the configuration of transformers that is in the folder.

    Raises:
        UsageError: The folder does not hold such a model, or it is of another shape, or it was none
            of transformers and `model` is left out.
        PlanError: The model does not take its plans.
        MissingExtraError: safetensors is not installed.
    """
    require_extra("models")
    folder = Path(folder)
    description = _described(folder)
    if model is None:
        model = _built(folder, description)
    for name, plan in description["plans"].items():
        try:
            part = model.get_submodule(name)
        except AttributeError:
            raise UsageError(f"{folder}: the model has no {name}, which was converted") from None
        take_shape(part, AttentionPlan.from_json(plan))
    _fill(model, folder / WEIGHTS)
    return model.eval()


def _once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that several names share under the first of these."""
    seen: dict[tuple[int, torch.Size], str] = {}
    kept = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and seen.setdefault(place, name) != name:
            continue
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        kept[name] = tensor.detach().contiguous() if whole else tensor.detach().clone()
    return kept


def _described(folder: Path) -> dict[str, Any]:
    try:
        with (folder / DESCRIPTION).open("rb") as file:
            data = json.loads(file.read(MAX_FILE_BYTES))
    except OSError as error:
        raise UsageError(f"{folder / DESCRIPTION}: {error.strerror}") from None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or not isinstance(data.get("plans"), dict) or not data["plans"]:
        raise UsageError(f"{folder / DESCRIPTION} was not written by save_converted")
    return data


def _built(folder: Path, description: dict[str, Any]) -> nn.Module:
    """A model of a class of transformers, with random weights."""
    name, how = description.get("class"), description.get("attn_implementation")
    if name is None:
        raise UsageError(
            f"{folder} holds no model of transformers: build the model as it was before the "
            "conversion, and call load_converted(folder, model)"
        )
    import transformers

    kind: Any = getattr(transformers, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise UsageError(
            f"{folder / DESCRIPTION}: {name!r} is no model of transformers "
            f"{transformers.__version__}: build it, and call load_converted(folder, model)"
        )
    if how not in IMPLEMENTATIONS:
        raise UsageError(f"{folder / DESCRIPTION}: attn_implementation must be eager or sdpa")
    try:
        config_class: Any = kind.config_class
        config = config_class.from_pretrained(folder, local_files_only=True)
        config._attn_implementation = how  # of parts as well
        model: nn.Module = kind(config)
        if (folder / "generation_config.json").exists():
            made = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
            model.generation_config = made  # type: ignore[assignment]
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{folder}: its configuration makes no {name}: {error}") from None
    return model


@torch.no_grad()
def _fill(model: nn.Module, path: Path) -> None:
    """Set all weights, in the types that they were saved in."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    types = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(types) == 1:
        model.to(types.pop())
    own = model.state_dict()
    there = {tensor.data_ptr() for name, tensor in own.items() if name in state}
    wrong = sorted(
        {name for name in state if name not in own or own[name].shape != state[name].shape}
        | {name for name, t in own.items() if name not in state and t.data_ptr() not in there}
    )
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UsageError(f"{path} is of another model: {wrong[0]}{more}")
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in state and parameter.dtype != state[name].dtype:
            parameter.data = parameter.data.to(state[name].dtype)
    model.load_state_dict(state, strict=False)
