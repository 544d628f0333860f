"""BoTorch on the plans of a table: a Gaussian process for the loss, costs by a known function.

The acquisition is the expected hypervolume improvement with observation noise (qLogNEHVI, Daulton
et al. 2021) of a list of two models: a `SingleTaskGP` on one-hot coordinates, and a
`GenericDeterministicModel` for the costs, as BoTorch's documentation proposes for objectives that
are known. It is maximised over all plans of the table that were not tried. The reference point is
that by which searches are judged.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nas_attn.benchmark.search.table import SearchTable

SAMPLES = 128
"""Draws of the posterior in the acquisition."""


class BoTorchPeer:
    """Proposes the plan with the largest expected gain of hypervolume.

    Args:
        table: The table.
        seed: Seed of the draws.
    """

    def __init__(self, table: SearchTable, seed: int) -> None:
        self.seed = seed
        self.texts = list(table.plans)
        self.places = {text: place for place, text in enumerate(self.texts)}
        self.inputs = torch.tensor(np.stack([table.one_hot(text) for text in self.texts]))
        costs = torch.tensor([table.points[text][1:] for text in self.texts], dtype=torch.float64)
        self.scale = torch.tensor(table.reference[1:], dtype=torch.float64)
        self.costs = costs / self.scale
        # Costs add up over units, so they are linear in the coordinates.
        ones = torch.ones(len(self.texts), 1, dtype=torch.float64)
        self.weights = torch.linalg.pinv(torch.cat([self.inputs, ones], 1)) @ self.costs
        self.weak = table.reference[0]
        self.told: dict[int, float] = {}
        self.before: dict[str, Any] = {}

    def ask(self) -> str:
        """The text of the next plan."""
        free = [place for place in range(len(self.texts)) if place not in self.told]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # BoTorch and its linear algebra warn of much
            gains = self._gains(self.inputs[free])
        return self.texts[free[int(gains.argmax())]]

    def tell(self, plan: str, loss: float, costs: Sequence[float]) -> None:
        """Take in what a plan came to."""
        self.told[self.places[plan]] = loss

    def _gains(self, candidates: Any) -> Any:
        """Logarithms of the expected gains of candidates (plans)."""
        from botorch.acquisition.multi_objective import logei
        from botorch.models import ModelList
        from botorch.models.deterministic import GenericDeterministicModel
        from botorch.sampling.get_sampler import get_sampler

        # Else BoTorch compiles C++ here, and waits for ever where an earlier try was killed.
        logei._load_attempted = True
        known = self.inputs[list(self.told)]
        negated = GenericDeterministicModel(self._negated_costs, num_outputs=self.costs.shape[1])
        model = ModelList(self._fitted(known), negated)
        draws = torch.Size([SAMPLES])
        acquisition = logei.qLogNoisyExpectedHypervolumeImprovement(
            model=model,
            ref_point=[-self.weak, *[-1.0] * self.costs.shape[1]],
            X_baseline=known,
            sampler=get_sampler(model.posterior(known), draws, seed=self.seed + len(self.told)),
            prune_baseline=True,
            cache_root=False,
        )
        with torch.no_grad():
            return acquisition(candidates.unsqueeze(1))

    def _fitted(self, known: Any) -> Any:
        """The Gaussian process of the negated loss; fitting starts from the last one's parameters,
        which takes less time."""
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import SingleTaskGP
        from botorch.models.transforms import Standardize
        from gpytorch.mlls import ExactMarginalLogLikelihood

        losses = torch.tensor(list(self.told.values()), dtype=torch.float64)
        model = SingleTaskGP(known, -losses.unsqueeze(-1), outcome_transform=Standardize(m=1))
        # Without the buffers, which hold the scale of the losses so far.
        for name, parameter in model.named_parameters():
            if name in self.before:
                parameter.data.copy_(self.before[name])
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        self.before = {name: value.detach().clone() for name, value in model.named_parameters()}
        return model

    def _negated_costs(self, inputs: Any) -> Any:
        ones = torch.ones(*inputs.shape[:-1], 1, dtype=inputs.dtype)
        return -(torch.cat([inputs, ones], -1) @ self.weights)
