"""Low-rank and shared factors of the heads' maps, in closed form or by alternating least squares.

Score maps come as factors, T_i = query[i].T @ key[i], and no matrix of n heads by width by width is
ever formed. Whitened factors (see `nas_attn.conversion.metric`) make every routine data-aware.

Shape legend: n heads, r rank of a head's map, p and q widths of the two inputs, R shared dimension.
A leading batch dimension (layers) is allowed in `collaborative_factors`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SWEEPS = 100
TOLERANCE = 1e-6
"""Sweeps end when the squared error falls by less than this share of the squared norm."""
RIDGE = 1e-12
"""Of the mean diagonal, added to the normal equations."""


@dataclass(frozen=True)
class SharedFactors:
    """T_i is nearly query.T @ diag(mixing[i]) @ key.

    Args:
        query: (R, p).
        key: (R, q).
        mixing: (n, R).
        error: what is left, relative to the norm of all maps.
        sweeps: of least squares that were made.
    """

    query: Tensor
    key: Tensor
    mixing: Tensor
    error: Tensor
    sweeps: int


def shared_rows(rank: int, *maps: tuple[Tensor, Tensor]) -> Tensor:
    """Rows that serve all maps of a group best: of all (rank, q) they leave the least error.

    The first right singular vectors of the maps left[i].T @ right[i] stacked upon each other
    (Eckart and Young 1936).

    Args:
        rank: how many rows; those that are not needed are zero.
        maps: pairs of left (n, r, p) and right (n, r, q); n, r and p may differ.

    Returns:
        (rank, q), orthonormal but for the zeros.
    """
    # With left.T = Q R, a map has the singular values and the rows of R right.
    stacked = torch.cat(
        [(torch.linalg.qr(left.mT, mode="r").R @ right).flatten(0, 1) for left, right in maps]
    )
    _, values, rows = torch.linalg.svd(stacked, full_matrices=False)
    chosen = rows[:rank] * (values[:rank, None] > 0)
    return torch.nn.functional.pad(chosen, (0, 0, 0, rank - len(chosen)))


def collaborative_factors(
    left: Tensor,
    right: Tensor,
    shared_dim: int,
    *,
    sweeps: int = SWEEPS,
    tolerance: float = TOLERANCE,
) -> SharedFactors:
    """Factors that all heads share, with a mixing vector a head (CP decomposition).

    It starts from the best factors that no two heads share, the largest singular triplets of all
    maps together (exact if `shared_dim` is the sum of their ranks), and goes on by alternating
    least squares.

    Args:
        left: (..., n, r, p).
        right: (..., n, r, q).
        shared_dim: R.
        sweeps: at most.
        tolerance: see `TOLERANCE`.
    """
    query, key, mixing = _one_hot(left, right, shared_dim)
    total = _inner(left, right).sum(-1)
    heads, rank = left.shape[-3:-1]
    stacked_left, stacked_right = left.flatten(-3, -2), right.flatten(-3, -2)
    error = _error(stacked_left, stacked_right, query, key, mixing, total, rank)
    done = 0
    if shared_dim >= heads * rank:
        return SharedFactors(query, key, mixing, error, done)
    for _ in range(sweeps):
        before = error
        image = (stacked_right @ key.mT) * mixing.repeat_interleave(rank, dim=-2)
        query = _solve((key @ key.mT) * (mixing.mT @ mixing), image.mT @ stacked_left)
        image = (stacked_left @ query.mT) * mixing.repeat_interleave(rank, dim=-2)
        key = _solve((query @ query.mT) * (mixing.mT @ mixing), image.mT @ stacked_right)
        products = (stacked_left @ query.mT) * (stacked_right @ key.mT)
        by_head = products.reshape(*products.shape[:-2], heads, rank, -1).sum(-2)
        mixing = _solve((query @ query.mT) * (key @ key.mT), by_head.mT).mT
        done += 1
        error = _error(stacked_left, stacked_right, query, key, mixing, total, rank)
        if bool((before**2 - error**2 < tolerance).all()):
            break
    return SharedFactors(*_balanced(query, key, mixing), error, done)


def _one_hot(left: Tensor, right: Tensor, shared_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular triplets of all heads together, each mixed by its own head alone."""
    left_q, left_r = torch.linalg.qr(left.mT)
    right_q, right_r = torch.linalg.qr(right.mT)
    first, values, second = torch.linalg.svd(left_r @ right_r.mT)
    heads, rank = values.shape[-2:]
    count = min(shared_dim, heads * rank)
    scales = values.sqrt()[..., None, :]
    rows_left = (left_q @ first * scales).mT.flatten(-3, -2)  # (..., n r, p)
    rows_right = (right_q @ second.mT * scales).mT.flatten(-3, -2)
    order = values.flatten(-2).argsort(dim=-1, descending=True, stable=True)[..., :count]
    order = order.sort(dim=-1).values
    query = rows_left.gather(-2, order[..., None].expand(*order.shape, left.size(-1)))
    key = rows_right.gather(-2, order[..., None].expand(*order.shape, right.size(-1)))
    owner = order // rank
    mixing = torch.nn.functional.one_hot(owner, heads).mT.to(left)
    if shared_dim > count:
        more = shared_dim - count
        query, key = (torch.nn.functional.pad(t, (0, 0, 0, more)) for t in (query, key))
        mixing = torch.nn.functional.pad(mixing, (0, more))
    return query, key, mixing


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Squared norm of each map."""
    return ((left @ left.mT) * (right @ right.mT)).sum((-2, -1))


def _error(
    left: Tensor,
    right: Tensor,
    query: Tensor,
    key: Tensor,
    mixing: Tensor,
    total: Tensor,
    rank: int,
) -> Tensor:
    """Relative Frobenius error over all heads."""
    products = (left @ query.mT) * (right @ key.mT) * mixing.repeat_interleave(rank, dim=-2)
    own = ((query @ query.mT) * (key @ key.mT) * (mixing.mT @ mixing)).sum((-2, -1))
    squared = (total - 2.0 * products.sum((-2, -1)) + own).clamp_min(0.0)
    return (squared / total.clamp_min(torch.finfo(total.dtype).tiny)).sqrt()


def _solve(gram: Tensor, target: Tensor) -> Tensor:
    """gram^-1 target, for a positive semi-definite gram."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    ridge = RIDGE * diagonal.mean(-1, keepdim=True).clamp_min(torch.finfo(gram.dtype).tiny)
    whole = gram + torch.diag_embed(ridge.expand_as(diagonal))
    factor, info = torch.linalg.cholesky_ex(whole)
    if bool(info.any()):
        solved: Tensor = torch.linalg.pinv(whole, hermitian=True) @ target
        return solved
    return torch.cholesky_solve(target, factor)


def _balanced(query: Tensor, key: Tensor, mixing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same product with mixing vectors of at most one and factors of equal length."""
    tiny = torch.finfo(query.dtype).tiny
    largest = mixing.abs().amax(-2).clamp_min(tiny)
    lengths = [factor.norm(dim=-1).clamp_min(tiny) for factor in (query, key)]
    common = (lengths[0] * lengths[1] * largest).sqrt()
    return (
        query * (common / lengths[0])[..., None],
        key * (common / lengths[1])[..., None],
        mixing / largest[..., None, :],
    )
