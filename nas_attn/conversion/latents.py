"""Latents from which scores and outputs lose least, each by what counts for it.

Scores matter by how keys vary, outputs by how averages of values do, so that no one singular value
decomposition serves both. That of all maps upon each other, in the metric of keys, is where
alternating least squares begin.

Shape legend: q width of the inputs, r width of the latent, M stacked rows of all heads' maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nas_attn.conversion.factors import EXACT, RIDGE, stacked

SWEEPS = 20


@dataclass(frozen=True)
class Weighed:
    """Maps of one kind, and what counts for them: an error E is as large as ||E L||.

    Args:
        maps: (M, q), of all heads upon each other, at a norm of one.
        root: L, (q, q), lower triangular.
    """

    maps: Tensor
    root: Tensor

    @classmethod
    def of(cls, left: Tensor, right: Tensor, root: Tensor) -> Weighed:
        """The maps left[i].T @ right[i], of left (n, p, any) and right (n, p, q)."""
        maps = stacked((left, right))
        norm = (maps @ root).norm().clamp_min(torch.finfo(maps.dtype).tiny)
        return cls(maps / norm, root)

    @property
    def moment(self) -> Tensor:
        """L L^T."""
        return self.root @ self.root.t()

    def fitted(self, latent: Tensor) -> Tensor:
        """B (M, r) such that B latent is nearest to the maps."""
        moved = latent @ self.moment
        fitted: Tensor = torch.linalg.solve(moved @ latent.t(), moved @ self.maps.t()).t()
        return fitted


def shared_latent(rank: int, scores: Weighed, outputs: Weighed) -> Tensor:
    """Rows (rank, q) that leave scores and outputs together the least relative error.

    Args:
        rank: Number r of rows; those that are not needed are zero.
        scores: Score maps, in the metric of keys.
        outputs: Output maps, in that of averaged values.

    Returns:
        Rows, orthonormal in the metric of keys but for the zeros.
    """
    both = torch.cat([scores.maps, outputs.maps]) @ scores.root
    _, values, rows = torch.linalg.svd(both, full_matrices=False)
    chosen = rows[:rank] * (values[:rank, None] > 0)
    latent = _undo(chosen, scores.root)
    if values[rank:].norm() > EXACT * values.norm():
        latent = _alternated(latent, scores, outputs)
    return torch.nn.functional.pad(latent, (0, 0, 0, rank - len(latent)))


def _alternated(latent: Tensor, scores: Weighed, outputs: Weighed) -> Tensor:
    """Solve for maps of latents and for the latents in turn.

    For latents that is a Sylvester equation, A W S + B W T = C; in a basis in which S is diagonal
    and T is one, and another in which so are A and A + B, it is solved number by number.
    """
    turn, spread, _ = torch.linalg.svd(
        torch.linalg.solve_triangular(outputs.root, scores.root, upper=False)
    )
    spread = spread.square()
    basis = outputs.root @ turn  # G: T = G G^T, S = G diag(spread) G^T
    for _ in range(SWEEPS):
        of_scores, of_outputs = scores.fitted(latent), outputs.fitted(latent)
        wanted = (of_scores.t() @ (scores.maps @ basis)) * spread
        wanted = wanted + of_outputs.t() @ (outputs.maps @ basis)
        grams = [maps.t() @ maps for maps in (of_scores, of_outputs)]
        both = grams[0] + grams[1]
        root = torch.linalg.cholesky(
            both + RIDGE * both.diagonal().mean() * torch.eye(len(both)).to(both)
        )
        inner = torch.linalg.solve_triangular(root, grams[0], upper=False)
        inner = torch.linalg.solve_triangular(root, inner.t(), upper=False)
        share, axes = torch.linalg.eigh(inner)  # of scores, from 0 to 1
        image = axes.t() @ torch.linalg.solve_triangular(root, wanted, upper=False)
        image = image / (share[:, None] * spread + (1.0 - share)[:, None])
        solved = torch.linalg.solve_triangular(root.t(), axes @ image, upper=True)
        rows = torch.linalg.solve(basis.t(), solved.t()).t()
        orthonormal = torch.linalg.qr((rows @ scores.root).t()).Q.t()
        latent = _undo(orthonormal, scores.root)
    return latent


def _undo(rows: Tensor, root: Tensor) -> Tensor:
    undone: Tensor = torch.linalg.solve_triangular(root, rows, upper=False, left=False)
    return undone
