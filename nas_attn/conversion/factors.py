"""Low-rank and shared factors of the heads' maps, in closed form or by alternating least squares.

Alternating least squares start from factors of their own and from any that a caller knows (see
`nas_attn.conversion.exact`).

Score maps come as factors, T_i = query[i].T @ key[i], and no matrix of n heads by width by width is
ever formed. Whitened factors (see `nas_attn.conversion.metric`) make every routine data-aware.

Shape legend: n heads, r rank of a head's map, p and q widths of the two inputs, R shared dimension.
A leading batch dimension (layers) is allowed in `collaborative_factors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SWEEPS = 100
TOLERANCE = 1e-6
"""Sweeps end when the squared error falls by less than this share of the squared norm."""
RIDGE = 1e-12
"""Of the mean diagonal, added to the normal equations."""
EXACT = 1e-10
"""Relative error of factors that leave nothing to improve."""

Factors = tuple[Tensor, Tensor, Tensor]
"""query (R, p), key (R, q) and mixing (n, R)."""


@dataclass(frozen=True)
class SharedFactors:
    """T_i is nearly query.T @ diag(mixing[i]) @ key.

    Args:
        query: (R, p).
        key: (R, q).
        mixing: (n, R).
        error: Frobenius error that is left, relative to the norm of all maps.
        sweeps: Number of sweeps of least squares that were made.
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
        rank: Number of rows; those that are not needed are zero.
        maps: Pairs of left (n, r, p) and right (n, r, q); n, r and p may differ.

    Returns:
        (rank, q), orthonormal but for the zeros.
    """
    values, rows = common_rows(*maps)
    chosen = rows[:rank] * (values[:rank, None] > 0)
    return torch.nn.functional.pad(chosen, (0, 0, 0, rank - len(chosen)))


def common_rows(*maps: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """All singular values and right singular vectors of maps stacked upon each other.

    Args:
        maps: As in `shared_rows`.
    """
    _, values, rows = torch.linalg.svd(stacked(*maps), full_matrices=False)
    return values, rows


def stacked(*maps: tuple[Tensor, Tensor]) -> Tensor:
    """Maps stacked upon each other, (any, q), but for a turn of each that no norm sees.

    Args:
        maps: As in `shared_rows`.
    """
    # With left.T = Q R, a map has the singular values and the rows of R right.
    return torch.cat(
        [(torch.linalg.qr(left.mT, mode="r").R @ right).flatten(0, 1) for left, right in maps]
    )


def collaborative_factors(
    left: Tensor,
    right: Tensor,
    shared_dim: int,
    *,
    starts: Sequence[Factors] = (),
    sweeps: int = SWEEPS,
    tolerance: float = TOLERANCE,
) -> SharedFactors:
    """Factors that all heads share, with a mixing vector a head (CP decomposition).

    It starts from the best factors that no two heads share, the largest singular triplets of all
    maps together (exact if `shared_dim` is the sum of their ranks), and goes on by alternating
    least squares; again from each of `starts`, and the nearest is taken. A start that is exact is
    the result.

    Args:
        left: (..., n, r, p).
        right: (..., n, r, q).
        shared_dim: Number R of shared dimensions.
        starts: Factors of so many dimensions to start from as well.
        sweeps: Most sweeps from each start.
        tolerance: Share of the squared norm, see `TOLERANCE`.
    """
    maps = _Maps.of(left, right)
    found: list[SharedFactors] = []
    for factors in (_one_hot(left, right, shared_dim), *starts):
        start = SharedFactors(*factors, maps.error(*factors), 0)
        # The quick error does not tell 1e-8 from none.
        if bool((start.error < 1e-6).all()) and is_exact(left, right, factors):
            return replace(start, error=torch.zeros_like(start.error))
        found.append(start)
    improved = [_alternate(maps, start, sweeps, tolerance) for start in found]
    return min(improved, key=lambda factors: float(factors.error.sum()))


@dataclass(frozen=True)
class _Maps:
    """Score maps, the factors of all heads stacked: left (..., n r, p) and right (..., n r, q)."""

    left: Tensor
    right: Tensor
    heads: int
    total: Tensor

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> _Maps:
        total = ((left @ left.mT) * (right @ right.mT)).sum((-3, -2, -1))
        return cls(left.flatten(-3, -2), right.flatten(-3, -2), left.size(-3), total)

    def by_row(self, mixing: Tensor) -> Tensor:
        """Mixing vectors of the heads (..., n, R), for each stacked row (..., n r, R)."""
        return mixing.repeat_interleave(self.left.size(-2) // self.heads, dim=-2)

    def error(self, query: Tensor, key: Tensor, mixing: Tensor) -> Tensor:
        """Relative Frobenius error over all heads, by a difference of squares: down to 1e-8."""
        products = (self.left @ query.mT) * (self.right @ key.mT) * self.by_row(mixing)
        own = ((query @ query.mT) * (key @ key.mT) * (mixing.mT @ mixing)).sum((-2, -1))
        squared = (self.total - 2.0 * products.sum((-2, -1)) + own).clamp_min(0.0)
        return (squared / self.total.clamp_min(torch.finfo(self.total.dtype).tiny)).sqrt()


def _alternate(maps: _Maps, start: SharedFactors, sweeps: int, tolerance: float) -> SharedFactors:
    """Alternating least squares."""
    query, key, mixing, error = start.query, start.key, start.mixing, start.error
    done = 0
    for _ in range(sweeps):
        before = error
        image = (maps.right @ key.mT) * maps.by_row(mixing)
        query = _solve((key @ key.mT) * (mixing.mT @ mixing), image.mT @ maps.left)
        image = (maps.left @ query.mT) * maps.by_row(mixing)
        key = _solve((query @ query.mT) * (mixing.mT @ mixing), image.mT @ maps.right)
        products = (maps.left @ query.mT) * (maps.right @ key.mT)
        # (..., n r, R) to (..., n, R)
        by_head = products.reshape(*products.shape[:-2], maps.heads, -1, products.size(-1)).sum(-2)
        mixing = _solve((query @ query.mT) * (key @ key.mT), by_head.mT).mT
        done += 1
        error = maps.error(query, key, mixing)
        if bool((before**2 - error**2 < tolerance).all()):
            break
    return SharedFactors(*_balanced(query, key, mixing), error, done)


def _one_hot(left: Tensor, right: Tensor, shared_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular triplets of all heads together, each mixed by its own head alone."""
    left_q, left_r = torch.linalg.qr(left.mT)
    right_q, right_r = torch.linalg.qr(right.mT)
    first, values, second = torch.linalg.svd(left_r @ right_r.mT, full_matrices=False)
    heads, rank = values.shape[-2:]  # a rank is no larger than any width
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


def is_exact(left: Tensor, right: Tensor, factors: Factors) -> bool:
    """Whether nothing but rounding is left; one head's maps are written out at a time."""
    query, key, mixing = factors
    lost, total = left.new_zeros(left.shape[:-3]), left.new_zeros(left.shape[:-3])
    for head in range(left.size(-3)):
        whole = left[..., head, :, :].mT @ right[..., head, :, :]
        total = total + whole.square().sum((-2, -1))
        found = (query * mixing[..., head, :, None]).mT @ key
        lost = lost + (whole - found).square().sum((-2, -1))
    return bool((lost <= EXACT**2 * total).all())


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
