"""Factors that heads share exactly, found by algebra where score maps have such a structure.

Alternating least squares creep towards an exact decomposition and may end beside it. Two kinds need
no search: heads whose maps come with shared keys (collaborative attention and those that are kin)
show their factors, and of maps that are products of a few shared factors, written in any basis, the
factors are common eigenvectors (Jennrich's algorithm: Harshman 1970, Leurgans et al. 1993).

Shape legend: n heads, r rank of a head's map, p and q widths of the two inputs, R shared dimension.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nas_attn.conversion.factors import Factors, common_rows, is_exact

NEGLIGIBLE = 1e-12
"""Singular values below this share of the largest are none."""
ROUNDED = 1e-5
"""The same for maps of weights that were stored in single precision."""
ALIKE = 1e-7
"""Eigenvalues closer than this share of the largest belong to one invariant subspace."""
PAIRS = 4
"""Random combinations of maps that are tried."""


def known_factors(query: Tensor, key: Tensor, shared_dim: int) -> Factors | None:
    """Factors of maps whose heads have key rows in common; the largest if there are more.

    What the heads make of one key row is a matrix of heads by inputs, and each of its singular
    triplets is one shared dimension.

    Args:
        query: (n, r, p), the maps are query[i].T @ key[i].
        key: (n, r, q); rows that are shared are equal to the last bit.
        shared_dim: Number R of shared dimensions.

    Returns:
        Factors of R dimensions, or None if no two heads share a row.
    """
    heads, rank = query.shape[:2]
    rows, owner = torch.unique(key.flatten(0, 1), dim=0, return_inverse=True)
    if len(rows) == heads * rank:
        return None
    owner = owner.view(heads, rank)  # the row of each head's rank
    made = query.new_zeros(heads, len(rows), query.size(-1))
    made.scatter_add_(1, owner[..., None].expand_as(query), query)
    first, values, second = torch.linalg.svd(made.transpose(0, 1), full_matrices=False)
    sizes = values * rows.norm(dim=1)[:, None]
    largest = sizes.flatten().argsort(descending=True, stable=True)[:shared_dim]
    largest = largest[sizes.flatten()[largest] > NEGLIGIBLE * sizes.max()]
    row, triplet = largest // values.size(1), largest % values.size(1)
    own = second[row, triplet] * values[row, triplet, None]
    return _widened((own, rows[row], first[row, :, triplet].t()), shared_dim)


def common_eigenvectors(left: Tensor, right: Tensor, shared_dim: int) -> Factors | None:
    """Factors of maps that are exactly, or but for rounding, left.T @ diag(m_i) @ right.

    That many dimensions must not be more than p or q, and no two of them be mixed in proportion
    unless their order in the maps does not matter.

    Args:
        left: (n, r, p), the maps are left[i].T @ right[i].
        right: (n, r, q).
        shared_dim: Number R of shared dimensions.

    Returns:
        Exact factors, or the last candidate, good or not; None if there is none, as where the maps
        need more dimensions than R.
    """
    sizes, rows = common_rows((right, left))
    more_sizes, more_rows = common_rows((left, right))
    for negligible in (NEGLIGIBLE, ROUNDED):
        ranks = {int((s > negligible * s.max()).sum()) for s in (sizes, more_sizes)}
        if len(ranks) == 1 and 0 < min(ranks) <= shared_dim:
            rank = ranks.pop()
            found = None
            for found in _of_rank(left, right, rows[:rank], more_rows[:rank], shared_dim):
                if is_exact(left, right, found):
                    break
            return found
    return None


def _of_rank(
    left: Tensor, right: Tensor, rows: Tensor, more_rows: Tensor, shared_dim: int
) -> Iterator[Factors]:
    """Candidates in the bases rows (R, p) and more_rows (R, q)."""
    cores = (left @ rows.t()).mT @ (right @ more_rows.t())  # (n, R, R)
    generator = torch.Generator().manual_seed(1)
    for _ in range(PAIRS):
        weights = torch.randn(2, len(cores), generator=generator, dtype=torch.float64).to(cores)
        one, other = torch.einsum("kn,nrs->krs", weights, cores)  # (R, R) each
        basis = _eigenvectors(one, other)
        if basis is None:
            continue
        # In the right basis each row of all heads' maps is one key, scaled by the mixing.
        images = torch.linalg.solve(basis, cores).transpose(0, 1)  # (R, n, R)
        first, values, second = torch.linalg.svd(images, full_matrices=False)
        key = second[:, 0] * values[:, :1]
        factors = (basis.t() @ rows, key @ more_rows, first[:, :, 0].t().contiguous())
        yield _widened(factors, shared_dim)


def _eigenvectors(one: Tensor, other: Tensor) -> Tensor | None:
    """Real bases of the invariant subspaces of one @ other^-1, side by side; None if it has none.

    Of equal eigenvalues and of complex pairs any basis of their subspace serves.
    """
    try:
        values, vectors = torch.linalg.eig(torch.linalg.solve(other.t(), one.t()).t())
    except RuntimeError:  # torch's own kind, of matrices that have no inverse
        return None
    order = values.real.argsort(stable=True)
    values, vectors = values[order], vectors[:, order]
    gap = ALIKE * float(values.abs().max())
    bases, start = [], 0
    for end in range(1, len(values) + 1):
        if end < len(values) and float(values.real[end] - values.real[end - 1]) <= gap:
            continue
        some = vectors[:, start:end]
        spanned = torch.cat([some.real, some.imag], dim=1)
        basis, _, _ = torch.linalg.svd(spanned, full_matrices=False)
        bases.append(basis[:, : end - start])
        start = end
    basis = torch.cat(bases, dim=1)
    smallest = float(torch.linalg.svdvals(basis)[-1])
    return basis if smallest > NEGLIGIBLE else None


def _widened(factors: Factors, shared_dim: int) -> Factors:
    query, key, mixing = factors
    more = shared_dim - len(query)
    pad = torch.nn.functional.pad
    return pad(query, (0, 0, 0, more)), pad(key, (0, 0, 0, more)), pad(mixing, (0, more))
