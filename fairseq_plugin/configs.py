"""Models of the plugin from hydra's configurations as well as from argparse's namespaces.

fairseq-train hands a model all its arguments in a namespace. fairseq-hydra-train, and checkpoints
that it wrote, hand it the `model` section of a configuration, without types and without defaults.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fairseq.dataclass.utils import _set_legacy_defaults
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf, open_dict

from nas_attn.errors import PlanError
from nas_attn.literals import code_in
from nas_attn.plan import AttentionPlan

SHARED_WITH_TASK = (
    "tokens_per_sample",
    "max_positions",
    "max_source_positions",
    "max_target_positions",
    "add_bos_token",
)
"""One flag sets these for task and model; a configuration says them in its task's section."""


def plan_argument(text: str) -> str:
    """The type of `--attention-plan`: a file's name is replaced by the plan that it holds."""
    try:
        return AttentionPlan.read(text).dumps()
    except PlanError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def plan_of(value: Any) -> AttentionPlan:
    """The plan of a model's arguments: JSON text, or the mapping of a configuration.

    Raises:
        PlanError: it is neither, or the plan is malformed.
    """
    if isinstance(value, dict):
        return AttentionPlan.from_json(value)
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        raise PlanError(
            f"attention_plan must be the plan itself, but is {value[:80]!r}: the name of a file "
            "counts only on the command line of a training"
        )
    return AttentionPlan.parse(value, "attention_plan")


def complete(
    args: Any, name: str, model: Any, architecture: Callable[[argparse.Namespace], None]
) -> None:
    """Fill in what a model's arguments leave out.

    Args:
        args: Namespace or the `model` section of a configuration; changed.
        name: Name of the architecture.
        model: Class of the model.
        architecture: Function that fills in a namespace.

    Raises:
        PlanError: a configuration has an argument that the model has not.
    """
    if not isinstance(args, DictConfig):
        architecture(args)
        return
    given = _namespace(args)
    for key, value in list(vars(given).items()):
        if value is None:  # says nothing
            delattr(given, key)
    known = _known(model, architecture)
    for key in vars(given):
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; do you mean {close[0]}?" if close else ""
            raise PlanError(f"model.{key}: {name} has no such argument{hint}")
    root = args._get_root()
    task = root.get("task") if isinstance(root, DictConfig) and root is not args else None
    for key in SHARED_WITH_TASK:
        value = task.get(key) if isinstance(task, DictConfig) else None
        if key in known and value is not None and not hasattr(given, key):
            setattr(given, key, value)
    plan = getattr(given, "attention_plan", None)
    if isinstance(plan, str) and _on_command_line(plan):
        given.attention_plan = AttentionPlan.read(_from_start(plan)).dumps()
    architecture(given)
    _set_legacy_defaults(given, model)
    with open_dict(args):
        args.update(vars(given))


@contextmanager
def as_namespace(args: Any) -> Iterator[argparse.Namespace]:
    """A model's arguments as a namespace, what is set on it is set on them.

    Raises:
        PlanError: they hold Python that is more than plain values.
    """
    given = _namespace(args) if isinstance(args, DictConfig) else args
    key = code_in(vars(given))
    if key is not None:
        raise PlanError(f"{key} must be a plain value, but is {getattr(given, key)[:80]!r}")
    yield given
    if isinstance(args, DictConfig):
        with open_dict(args):
            args.update(vars(given))


def offer(name: str) -> None:
    """Let a configuration say `model=NAME`."""
    ConfigStore.instance().store(name=name, group="model", node={"_name": name}, provider="plugin")


def _namespace(args: DictConfig) -> argparse.Namespace:
    given = OmegaConf.to_container(args, resolve=True)
    assert isinstance(given, dict)
    named = {str(key): value for key, value in given.items()}
    for key, value in named.items():
        if key.endswith("_layers_to_keep") and isinstance(value, list):
            named[key] = ",".join(map(str, value))  # as the flag has it
    return argparse.Namespace(**named)


def _known(model: Any, architecture: Callable[[argparse.Namespace], None]) -> set[str]:
    """Names of all arguments that a model has."""
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS, allow_abbrev=False)
    model.add_args(parser)
    defaults = argparse.Namespace()
    architecture(defaults)
    known = {action.dest for action in parser._actions} | set(vars(defaults))
    return (known | {"_name", "arch", "tpu", *SHARED_WITH_TASK}) - {"help"}


def _on_command_line(plan: str) -> bool:
    """Whether this process was started with such a plan, be it a file's name."""
    words = (word.lstrip("+").partition("=") for word in sys.argv[1:])
    return any(
        key == "model.attention_plan" and value.strip("'\"") == plan for key, _, value in words
    )


def _from_start(plan: str) -> str:
    """A file's name as it was when hydra had not yet changed the folder."""
    if plan.lstrip().startswith("{") or not HydraConfig.initialized():
        return plan
    return str(to_absolute_path(plan))
