"""Groups of heads that compute alike, from the inner products of the heads' features.

Whatever clustering, votes and the group constraint ask of features (a vector of batch x time x
width numbers for each head) are distances and cosines among heads and means of heads, and these
follow from the n x n inner products alone. So features are read once, and what remains is small.

Shape legend: L layers, n heads, C groups.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST_SQUARE = 1e-12
"""Squared lengths below it count as this, so that cosines of zero vectors are zero."""


def inner_products(features: Tensor, padding: Tensor | None = None) -> Tensor:
    """Inner products (n, n) of the heads' features over a whole batch.

    Args:
        features: Features (B, n, T, width) of any kind.
        padding: Bool or None, (B, T), true at positions to leave out.
    """
    if padding is not None:
        features = features.masked_fill(padding[:, None, :, None], 0.0)
    flat = features.transpose(0, 1).flatten(1)  # (n, B * T * width)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    with torch.autocast(flat.device.type, enabled=False):
        return flat @ flat.t()


def group_heads(products: Tensor, num_groups: int) -> Tensor:
    """K-means of the heads of every layer.

    Centres start at the farthest heads from each head in turn; then single heads change groups as
    long as that brings heads nearer to their centres (Hartigan and Wong 1979), which never empties
    a group; the best of the n outcomes is taken. Nothing is random.

    Args:
        products: (L, n, n) inner products of the heads.
        num_groups: Number C of groups; at most n are formed.

    Returns:
        (L, n), the group of each head; groups are numbered by their first head.
    """
    # Many steps on a few numbers: a CPU is the place for them.
    products = products.detach().to("cpu", torch.float64)
    layers, heads, _ = products.shape
    groups = min(num_groups, heads)
    squares = products.diagonal(dim1=1, dim2=2)
    distances = squares[:, :, None] + squares[:, None] - 2 * products
    labels = _farthest_first(distances, groups)  # (L, starts, n)
    tolerance = 1e-9 * squares.mean(dim=1)[:, None]
    inner = products[:, None]
    for _ in range(4 * heads):
        members = F.one_hot(labels, groups).to(products.dtype)  # (L, starts, n, C)
        sizes = members.sum(dim=2, keepdim=True)
        towards = inner @ members
        lengths = (members * towards).sum(dim=2, keepdim=True) / sizes**2
        to_centre = squares[:, None, :, None] - 2 * towards / sizes + lengths
        leaving = members * to_centre * sizes / (sizes - 1)
        leaving = torch.where(members * sizes == 1.0, -math.inf, leaving)
        leaving = torch.where(members == 1.0, leaving, 0.0).sum(dim=3, keepdim=True)
        change = to_centre * sizes / (sizes + 1) - leaving
        change = torch.where(members == 1.0, math.inf, change).flatten(2)
        best, move = change.min(dim=2)
        moves = best < -tolerance
        if not moves.any():
            break
        head, group = move // groups, move % groups
        moved = labels.scatter(2, head[..., None], group[..., None])
        labels = torch.where(moves[..., None], moved, labels)
    spread = (F.one_hot(labels, groups) * to_centre).sum(dim=(2, 3))
    chosen = spread.argmin(dim=1)
    return _by_first_head(labels[torch.arange(layers), chosen])


def membership(labels: Tensor, num_groups: int) -> Tensor:
    """(L, C, n), the weights with which a group's centre is the mean of its heads."""
    members = F.one_hot(labels, num_groups).transpose(-1, -2).to(torch.float64)
    return members / members.sum(dim=-1, keepdim=True).clamp(min=1.0)


def centre_products(products: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products of heads with centres (L, n, C) and of centres (L, C, C)."""
    with_heads = products @ weights.transpose(-1, -2)
    return with_heads, weights @ with_heads


def constraint_terms(products: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of the group constraint for every layer (Ni et al. 2023, Eq. 4 B).

    Gradients flow through the centres, as in the released code.

    Args:
        products: (L, n, n) inner products of the heads.
        labels: (L, n), the group of each head.

    Returns:
        (L,) and (L,): the mean cosine of heads with their own centre, to be large, and the mean
        cosine of pairs of centres, to be small; zero where there is one group.
    """
    groups = int(labels.max()) + 1
    weights = membership(labels, groups).to(products)
    labels = labels.to(products.device)
    # Sums over a whole batch are beyond what float16 holds, and bfloat16 rounds cosines coarsely.
    with torch.autocast(products.device.type, enabled=False):
        with_heads, centres = centre_products(products, weights)
    lengths = centres.diagonal(dim1=1, dim2=2).clamp(min=SMALLEST_SQUARE).sqrt()
    own = with_heads.gather(2, labels[..., None]).squeeze(2)
    squares = products.diagonal(dim1=1, dim2=2).clamp(min=SMALLEST_SQUARE)
    within = (own / (squares.sqrt() * lengths.gather(1, labels))).mean(dim=1)
    if groups == 1:
        return within, torch.zeros_like(within)
    cosines = centres / (lengths[:, :, None] * lengths[:, None])
    pair = torch.triu_indices(groups, groups, 1, device=products.device)
    return within, cosines[:, pair[0], pair[1]].mean(dim=1)


def vote(products: Tensor, labels: Tensor) -> Tensor:
    """(L, n), one for the head of each group that is nearest to the centre, zero for others.

    Both heads of a pair are as near as the other; the lower one gets the vote.
    """
    products = products.detach().to("cpu", torch.float64)
    groups = int(labels.max()) + 1
    with_heads, centres = centre_products(products, membership(labels, groups))
    squares = products.diagonal(dim1=1, dim2=2)[..., None]
    distances = squares - 2 * with_heads + centres.diagonal(dim1=1, dim2=2)[:, None]
    distances = distances.masked_fill(F.one_hot(labels, groups) == 0, math.inf)
    rounding = 1e-9 * squares.mean(dim=1, keepdim=True)
    nearest = distances <= distances.amin(dim=1, keepdim=True) + rounding
    return F.one_hot(nearest.long().argmax(dim=1), labels.size(1)).sum(dim=1)


def together(labels: Tensor) -> Tensor:
    """(L, n, n), one where two heads are in one group."""
    return (labels[:, :, None] == labels[:, None]).long()


def centre_shift(products: Tensor, labels: Tensor, before: Tensor) -> Tensor:
    """(L,), how far heads' centres move if groups change: the root mean square over heads, over
    that of the heads themselves.

    Batches have spaces of their own, so the earlier groups' centres are taken in this batch's.

    Args:
        products: (L, n, n) inner products of the heads.
        labels, before: (L, n), the groups now and earlier.
    """
    products = products.detach().to("cpu", torch.float64)
    change = _to_centres(labels) - _to_centres(before)
    moved = (change @ products * change).sum(dim=(1, 2))
    scale = products.diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=SMALLEST_SQUARE)
    return (moved.clamp(min=0.0) / scale).sqrt()


def normalise(products: Tensor) -> Tensor:
    """Inner products of the features scaled to length one: distances become those of cosines."""
    squares = products.diagonal(dim1=-2, dim2=-1).clamp(min=SMALLEST_SQUARE)
    lengths = squares.sqrt()
    return products / (lengths[..., :, None] * lengths[..., None, :])


def _farthest_first(distances: Tensor, groups: int) -> Tensor:
    """For every head as the first centre: the next is the farthest from those taken. (L, n, n)."""
    layers, heads, _ = distances.shape
    centres = torch.arange(heads).expand(layers, heads)[..., None]  # (L, starts, 1)
    nearest = distances.clone()
    for _ in range(1, groups):
        taken = nearest.scatter(2, centres, -1.0)
        farthest = taken.argmax(dim=2, keepdim=True)
        centres = torch.cat([centres, farthest], dim=2)
        row = distances.gather(1, farthest.expand(-1, -1, heads))
        nearest = torch.minimum(nearest, row)
    to_each = distances.gather(1, centres.flatten(1)[..., None].expand(-1, -1, heads))
    labels = to_each.view(layers, heads, groups, heads).argmin(dim=2)  # (L, starts, n)
    # Identical heads may both be centres; each keeps its own group.
    return labels.scatter(2, centres, torch.arange(groups).expand(layers, heads, groups))


def _by_first_head(labels: Tensor) -> Tensor:
    """Number groups in the order of their first heads."""
    heads = labels.size(1)
    first = together(labels).argmax(dim=2)  # first head of each head's group
    is_first = first == torch.arange(heads)
    return (is_first.long().cumsum(dim=1) - 1).gather(1, first)


def _to_centres(labels: Tensor) -> Tensor:
    """(L, n, n), the map from heads to the centres of their groups."""
    same = together(labels).to(torch.float64)
    return same / same.sum(dim=2, keepdim=True)
