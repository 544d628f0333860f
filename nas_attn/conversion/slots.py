"""Attention modules of a model, and what stands ready to take their places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nas_attn.attention import Attention
from nas_attn.conversion.table import CROSS, Layout, full_name


@dataclass(frozen=True)
class Found:
    """An attention module of a known class.

    Args:
        name: Name in the model; the first, if it is used in several places.
        module: Module as it is.
        layout: Names of its parts; None for torch's own.
        places: The modules that hold it, and under which attribute.
    """

    name: str
    module: nn.Module
    layout: Layout | None
    places: tuple[tuple[nn.Module, str], ...]

    @property
    def label(self) -> str:
        """Name and class, for errors."""
        return f"{self.name} ({full_name(type(self.module))})"

    @property
    def site(self) -> str:
        """Where it acts, as its family, its module and its name tell."""
        for part, site in self.layout.sites if self.layout is not None else ():
            if part in self.name:
                return site
        if any(part in CROSS for part in self.name.split(".")):
            return "encoder_decoder"
        causal = getattr(self.module, "is_causal", False)
        return "decoder_self" if causal or "decoder" in self.name else "encoder_self"

    def linears(self) -> dict[str, Any]:
        """Modules with weights of the attention, by their names."""
        if self.layout is None:
            return {"out_proj": getattr(self.module, "out_proj", None)}
        linears = {}
        for path in self.layout.projections:
            outside = self.layout.output_outside and path == self.layout.projections[3]
            holder: Any = self.places[0][0] if outside else self.module
            for part in path.split("."):
                holder = getattr(holder, part, None)
            linears[path] = holder
        return linears


@dataclass
class Slot:
    """What stands ready to take the place of an attention module.

    Args:
        found: The module.
        attention: Multi-head attention of ours with its weights, then what that is converted to.
        wrap: Function that puts attention behind the module's call.
    """

    found: Found
    attention: Attention
    wrap: Callable[[Attention], nn.Module]

    def output_of(self, result: Any) -> Tensor:
        """The attention's output, of what the original returned."""
        output: Tensor = result[0] if isinstance(result, tuple) else result
        layout = self.found.layout
        if layout is not None and layout.output_outside:
            output = self.found.linears()[layout.projections[3]](output)
        return output

    def put(self) -> None:
        """Replace the module, wherever it is used."""
        trains = any(p.requires_grad for p in self.found.module.parameters())
        replacement = self.wrap(self.attention.requires_grad_(trains))
        replacement.train(self.found.module.training)
        for name in ("_forward_hooks", "_forward_hooks_with_kwargs"):
            # Of transformers only (others were refused); they record what modules return.
            setattr(replacement, name, getattr(self.found.module, name))
        for parent, attribute in self.found.places:
            put(parent, attribute, self.found.layout, replacement)


def put(parent: nn.Module, attribute: str, layout: Layout | None, replacement: nn.Module) -> None:
    """Replace one attention module of a parent, and its output projection if that is outside."""
    setattr(parent, attribute, replacement)
    if layout is not None and layout.output_outside:
        holder, _, last = layout.projections[3].rpartition(".")
        setattr(parent.get_submodule(holder), last, nn.Identity())
