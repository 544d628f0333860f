"""Samplers of other libraries behind one interface: ask for a plan, tell what it came to.

All of them choose among the plans of the table and begin as our own samplers do: with the
baseline, and then plans spread over the first cost (see `StratifiedSampler`). So what differs is
what comes after. They are packages of their own, and none is needed for anything else.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from nas_attn.benchmark.search.botorch_peer import BoTorchPeer
from nas_attn.benchmark.search.moasha_peer import MoashaPeer
from nas_attn.benchmark.search.replayed import Outcome, Run
from nas_attn.benchmark.search.steps import Ended
from nas_attn.benchmark.search.table import SearchTable
from nas_attn.curves import Point
from nas_attn.engine.config import SearchConfig
from nas_attn.engine.samplers import StratifiedSampler
from nas_attn.errors import UsageError

START = SearchConfig.model_fields["startup_trials"].default
"""Trials after the baseline that are spread over the first cost, as in our own searches."""
MOST_REPEATS = 40
"""Proposals in a row of plans that were tried, before a random new plan is taken instead."""


class Peer(Protocol):
    """A sampler; the lower a loss or cost the better."""

    def ask(self) -> str:
        """The text of a plan of the table, to be trained."""

    def tell(self, plan: str, loss: float, costs: Sequence[float]) -> None:
        """What a plan came to, one that was asked for or one of the start."""


@runtime_checkable
class StoppingPeer(Peer, Protocol):
    """A sampler that also stops trials."""

    def goes_on(self, plan: str, validations: int, loss: float, costs: Sequence[float]) -> bool:
        """Whether a plan is trained further after so many validations, by the last one's loss."""


PeerMaker = Callable[[SearchTable, int], Peer]
"""From a table and a seed."""


def replay_peer(table: SearchTable, run: Run) -> Outcome:
    """Run a peer's search on a table, one trial after the other.

    Raises:
        UsageError: its package is not installed, or a rule is to stop trials, or it is to have
            workers.
    """
    check_peer(run.sampler)
    if run.rule != "none" or run.workers != 1:
        raise UsageError(f"{run.sampler} is compared with --rule none and --workers 1 alone")
    peer = PEERS[run.sampler][1](table, run.seed)
    waiting = start_of(table, run.seed)
    told: set[str] = set()
    ended: list[Ended] = []
    seconds: list[float] = []
    clock, repeats = 0.0, 0
    random = np.random.default_rng(run.seed)
    while len(told) < min(run.trials, len(table.plans)):
        began = time.perf_counter()
        text = waiting.pop(0) if waiting else peer.ask()
        seconds.append(time.perf_counter() - began)
        if repeats >= MOST_REPEATS:
            text = str(random.choice(sorted(table.plans.keys() - told)))
        if text not in table.plans:
            raise UsageError(f"{run.sampler} proposes a plan that is not in the table: {text}")
        repeats = repeats + 1 if text in told else 0
        if text not in told:
            last, is_finished = _trained(table, text, peer)
            clock += last.seconds
            ended.append(Ended(text, last.num_updates, clock, is_finished))
        told.add(text)
        loss, *costs = table.points[text]
        peer.tell(text, loss, costs)
    return Outcome(ended, seconds)


def _trained(table: SearchTable, text: str, peer: Peer) -> tuple[Point, bool]:
    """The last validation of a plan's trial, and whether it was trained to its end."""
    points = table.curves[text, table.seed].points
    if isinstance(peer, StoppingPeer):
        for number, point in enumerate(points[:-1], start=1):
            is_wanted = peer.goes_on(text, number, point.loss, table.points[text][1:])
            if not is_wanted and text != table.baseline.dumps():
                return point, False
    return points[-1], True


def check_peer(name: str) -> None:
    """Refuse a peer whose packages are not installed.

    Raises:
        UsageError: names the command that installs them.
    """
    missing = [p for p in PEERS[name][0] if importlib.util.find_spec(p) is None]
    if missing:
        raise UsageError(
            f"{name} needs {' and '.join(missing)}: pip install 'nas-attn[peers]' (best into a "
            "virtual environment of its own)"
        )


def start_of(table: SearchTable, seed: int) -> list[str]:
    """The baseline, and plans of the table spread over the first cost."""
    spread = StratifiedSampler(table.space, lambda plan: table.cost(plan)[0], seed)
    texts = [table.baseline.dumps()]
    for index in range(START):
        chosen = spread.propose(index, texts, lambda plan: plan.dumps() in table.plans)
        if chosen is not None:
            texts.append(table.space.plan(chosen).dumps())
    return texts


class OptunaPeer:
    """A sampler of Optuna's in plain Optuna: a category for each unit of the space.

    Args:
        table: The table.
        sampler: The sampler.
    """

    def __init__(self, table: SearchTable, sampler: optuna.samplers.BaseSampler) -> None:
        self.table = table
        self.study = optuna.create_study(
            sampler=sampler, directions=list(table.objectives.directions)
        )
        names = {
            unit.name: [str(index) for index in range(len(unit.alternatives))]
            for unit in table.space.units
        }
        self.spaces: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(values) for name, values in names.items()
        }
        self.asked: optuna.Trial | None = None

    def ask(self) -> str:
        """The text of the next plan; tells its trial off if the table lacks it."""
        units = self.table.space.units
        for _ in range(MOST_REPEATS):
            self.asked = self.study.ask(self.spaces)
            chosen = [u.alternatives[int(self.asked.params[u.name])] for u in units]
            text = self.table.space.plan(chosen).dumps()
            if text in self.table.plans:
                return text
            self.study.tell(self.asked, state=optuna.trial.TrialState.FAIL)
        raise UsageError(f"{MOST_REPEATS} proposals in a row are not in the table")

    def tell(self, plan: str, loss: float, costs: Sequence[float]) -> None:
        """Close the trial that was asked for, or add one."""
        values = [loss, *costs]
        if self.asked is not None:
            self.study.tell(self.asked, values)
            self.asked = None
            return
        params = {
            unit.name: str(index)
            for unit, index in zip(self.table.space.units, self.table.indices(plan), strict=True)
        }
        self.study.add_trial(
            optuna.trial.create_trial(params=params, distributions=self.spaces, values=values)
        )


def _nsga3(table: SearchTable, seed: int) -> Peer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.NSGAIIISampler(population_size=max(4, START), seed=seed)
    return OptunaPeer(table, sampler)


def _gp_flat(table: SearchTable, seed: int) -> Peer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=1 + START)
    return OptunaPeer(table, sampler)


PEERS: Mapping[str, tuple[tuple[str, ...], PeerMaker]] = {
    "botorch": (("botorch", "gpytorch"), BoTorchPeer),
    "gp_flat": ((), _gp_flat),
    "moasha": (("syne_tune",), MoashaPeer),
    "nsga3": ((), _nsga3),
}
"""Packages that each peer needs, and what makes it."""
