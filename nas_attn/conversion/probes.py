"""Calls that compare a module with ours that is to take its place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nas_attn.attention import Attention
from nas_attn.conversion.slots import Found, Slot, put
from nas_attn.conversion.wrappers import argument_names
from nas_attn.errors import PlanError

Probe = tuple[tuple[Tensor, ...], dict[str, Tensor]]
"""Arguments of a call, by position and by name."""


def torch_probes(module: Any) -> list[Probe]:
    """Calls of torch's own attention: without a mask, with padding, causal."""
    make = torch.Generator().manual_seed(0)
    shape = (2, 5) if module.batch_first else (5, 2)
    query, key, value = (
        torch.randn(*shape, width, dtype=torch.float64, generator=make)
        for width in (module.embed_dim, module.kdim, module.vdim)
    )
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    given = (query, key, value)
    return [(given, {}), (given, {"key_padding_mask": padding}), (given, {"attn_mask": later})]


def hidden_states_probes(found: Found, attention: Attention) -> list[Probe]:
    """Calls as a layout says, of the module or of what holds it if the output is made there:
    without a mask and with one, to itself and to other states, with a position bias."""
    layout = found.layout
    assert layout is not None
    make = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=make)

    called = found.places[0][0] if layout.output_outside else found.module
    known = argument_names(type(called))
    states, given = random(2, 5, attention.embed_dim), {}
    keys, heads = 5, attention.embed_dim // attention.head_dim
    if layout.states and found.site == "encoder_decoder":
        keys = 4
        given[layout.states] = random(2, keys, attention.kdim)
    mask = torch.zeros(2, 1, 5, keys, dtype=torch.float64)
    mask[1, ..., 3:] = torch.finfo(torch.float64).min
    name = layout.mask
    if layout.output_outside and found.site == "encoder_decoder":
        name = "encoder_attention_mask"  # which the module around passes on
    probes: list[Probe] = [((states,), given)]
    if name in known:
        probes.append(((states,), {**given, name: mask}))
    if layout.position_bias:
        probes.append(
            ((states,), {**given, name: mask, "position_bias": random(1, heads, 5, keys)})
        )
    return probes


@torch.no_grad()
def check(slot: Slot, probes: Sequence[Probe]) -> None:
    """Compare a copy of the module, or of what holds it, with and without ours in its place.

    Raises:
        PlanError: They do not compute the same, or it does not take a probe.
    """
    found = slot.found
    parent, attribute = found.places[0]
    outside = found.layout is not None and found.layout.output_outside
    before = copy.deepcopy(parent if outside else found.module).to("cpu", torch.float64).eval()
    after = copy.deepcopy(slot.wrap(slot.attention)).to("cpu", torch.float64).eval()
    if outside:
        ours, after = after, copy.deepcopy(before)
        put(after, attribute, found.layout, ours)
    for given, masks in probes:
        try:
            results = [module(*given, **masks) for module in (before, after)]
        except Exception as error:
            raise PlanError(f"it does not take a probe ({type(error).__name__}: {error})") from None
        wanted, got = (r[0] if isinstance(r, tuple) else r for r in results)
        if not is_close(wanted, got):
            how = f"under {', '.join(masks)}" if masks else "without a mask"
            raise PlanError(
                f"{how} it computes something else than multi-head attention with its weights"
            )


def is_close(wanted: Tensor, found: Tensor) -> bool:
    """Whether two results are one to rounding, for their type; of float64, to that of float32, in
    which some models compute the softmax whatever their type is. Where the wanted one is no number,
    as torch's is of queries that see no key, there is nothing to compare."""
    if wanted.shape != found.shape:
        return False
    share = min(max(1000.0 * torch.finfo(wanted.dtype).eps, 1e-5), 0.05)
    is_number = wanted.isfinite()
    wanted, found = wanted[is_number].double(), found[is_number].double()
    if not len(wanted):
        return True
    size = wanted.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return bool((wanted - found).abs().max() <= share * size)
