"""What an attention module computes, head by head, whatever its scheme.

With one behind the query, x~ = (x, 1), head i scores a key input y by x~^T T_i y, where T_i is
`query[i].T @ key[i]`, and adds O_i V_i z_i to the output, where z_i are the value inputs averaged
by its attention weights. What the softmax or the output bias absorbs is left out or folded in.

Shape legend: n heads, r rank of a score map, d `embed_dim`, h width of a value.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from nas_attn.attention import Attention


@dataclass(frozen=True)
class HeadMatrices:
    """The maps of one module, in float64.

    Args:
        query: (n, r, d + 1), the last column is the bias.
        key: (n, r, kdim).
        value: (n, h, vdim).
        output: (n, d, h).
        bias: (d,), the output's, with what comes of the values' biases.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    bias: Tensor

    @property
    def num_heads(self) -> int:
        return len(self.query)

    def padded(self, num_heads: int) -> HeadMatrices:
        """The same with heads that do nothing behind it."""
        more = (0, 0, 0, 0, 0, num_heads - self.num_heads)
        pad = torch.nn.functional.pad
        return HeadMatrices(
            query=pad(self.query, more),
            key=pad(self.key, more),
            value=pad(self.value, more),
            output=pad(self.output, more),
            bias=self.bias,
        )


def maps_of(module: Attention) -> HeadMatrices:
    """Read the maps of a module of any scheme, by what it makes of unit vectors.

    Args:
        module: Module in evaluation mode or not; it is not changed.
    """
    probe = copy.deepcopy(module).to("cpu", torch.float64).eval()
    with torch.no_grad():
        queries = probe.queries(_units(probe.embed_dim))[0]  # (n or 1, d + 1, r)
        shifts = probe.query_shifts()
        if shifts is not None:
            queries = queries + shifts[:, None]
        query = _affine(queries)
        keys = probe.keys(_units(probe.kdim))[0]
        key = _affine(keys)[..., :-1]  # a constant key shifts all scores of a query alike
        values = probe.values(_units(probe.vdim))[0]
        if not values.size(-1):
            values = keys
        if not keys.size(-1):
            return _without_attention(probe)
        values = values.repeat_interleave(probe.num_heads // len(values), dim=0)
        if len(query) == len(key) == 1 and probe.out_proj.in_features == values.size(-1):
            values = values[:1]  # one head whose output is not repeated
        mixed = probe.mix_values(values[None])[0]  # (n, vdim + 1, h)
        value = _affine(mixed)
        heads = len(value)
        output = probe.out_proj.weight.view(probe.embed_dim, heads, -1).transpose(0, 1)  # (n, d, h)
        bias = torch.einsum("ndh,nh->d", output, value[..., -1])  # (d,)
        if probe.out_proj.bias is not None:
            bias = bias + probe.out_proj.bias
    return HeadMatrices(
        query=_repeat(query, heads),
        key=_repeat(key, heads),
        value=value[..., :-1].contiguous(),
        output=output.contiguous(),
        bias=bias.detach().clone(),
    )


def _without_attention(module: Attention) -> HeadMatrices:
    """One head a query head, of one number, that does nothing."""
    heads, bias = module.num_heads, module.out_proj.bias

    def nothing(*shape: int) -> Tensor:
        return torch.zeros(heads, *shape, dtype=torch.float64)

    return HeadMatrices(
        query=nothing(1, module.embed_dim + 1),
        key=nothing(1, module.kdim),
        value=nothing(1, module.vdim),
        output=nothing(module.embed_dim, 1),
        bias=nothing(module.embed_dim)[0] if bias is None else bias.detach().clone(),
    )


def _units(width: int) -> Tensor:
    """(1, width + 1, width): every unit vector, and zero at the end."""
    return torch.eye(width + 1, width, dtype=torch.float64)[None]


def _affine(images: Tensor) -> Tensor:
    """(n, width + 1, r), the images of `_units`, to the map (n, r, width + 1), bias last."""
    constant = images[:, -1:]
    return torch.cat([images[:, :-1] - constant, constant], dim=1).transpose(1, 2)


def _repeat(maps: Tensor, heads: int) -> Tensor:
    return maps.repeat_interleave(heads // len(maps), dim=0)
