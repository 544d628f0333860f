"""One search on a table, in virtual time: the driver, sampler and stopping rule of a real one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from optuna.storages import InMemoryStorage
from pydantic import ValidationError

from nas_attn.benchmark.search.steps import Ended
from nas_attn.benchmark.search.table import SearchTable, beside
from nas_attn.config_model import faults_of
from nas_attn.engine.candidates import Proposal, Proposer
from nas_attn.engine.config import SearchConfig, StoppingConfig
from nas_attn.engine.executors.simulated import SimulatedExecutor
from nas_attn.engine.leases import TrialLeases
from nas_attn.engine.loop import JobBuilder, SearchLoop
from nas_attn.engine.store import TrialStore
from nas_attn.errors import ConfigError, UsageError
from nas_attn.plan import AttentionPlan
from nas_attn.simulation.command import replay_command
from nas_attn.simulation.synthetic import ReplayConfig
from nas_attn.trials.job import SeedRun, StartFolders, TrialJob, TrialResult

SAMPLERS: tuple[str, ...] = get_args(SearchConfig.model_fields["sampler"].annotation)
PREDICTED = "known_cost+predictions"
"""`known_cost` that also knows what conversions of the trained baseline predict, as it does in a
study with `enqueue: sensitivity`; it begins with points spread over the cost all the same, for
searches to differ by their seeds."""
RULES: tuple[str, ...] = get_args(StoppingConfig.model_fields["rule"].annotation)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A search that is compared.

    Args:
        sampler: Name of the sampler.
        rule: Name of the stopping rule.
        workers: Trials at a time.
        seed: Seed of the proposals.
        trials: Trials in all, the baseline and stopped ones included.
    """

    sampler: str
    rule: str
    workers: int
    seed: int
    trials: int


@dataclass(frozen=True)
class Outcome:
    """What a search did.

    Args:
        trials: Its trials, in the order in which they ended.
        proposal_seconds: Seconds of each proposal.
    """

    trials: Sequence[Ended]
    proposal_seconds: Sequence[float]


class TableProposer(Proposer):
    """Proposes plans of a table, and takes the time that it needs.

    Args:
        table: The table.
        config: Sampler and seed.
        predicted: What the sampler is told of single conversions (see `Proposer`).
    """

    def __init__(
        self, table: SearchTable, config: SearchConfig, predicted: Mapping[str, float]
    ) -> None:
        self.table = table
        self.seconds: list[float] = []
        super().__init__(
            table.space, table.costs, table.objectives, config, table.baseline, (), predicted
        )

    def propose(self) -> Proposal | None:
        """The next plan."""
        began = time.perf_counter()
        proposal = super().propose()
        self.seconds.append(time.perf_counter() - began)
        return proposal

    def _excess(self, plan: AttentionPlan) -> str | None:
        # No neighbour stands in for what the table lacks.
        return super()._excess(plan) if plan.dumps() in self.table.plans else "is not in the table"


@dataclass
class _TimedLoop(SearchLoop):
    """Notes when trials end."""

    executor: SimulatedExecutor = field(default_factory=SimulatedExecutor)
    ended: dict[int, float] = field(default_factory=dict)

    def finish(self, number: int, result: TrialResult) -> None:
        self.ended[number] = self.executor.clock
        super().finish(number, result)


def replay_search(table: SearchTable, run: Run) -> Outcome:
    """Run a search on a table.

    Raises:
        ConfigError: there is no such sampler or rule.
        UsageError: the sampler needs predictions, and the table has none.
    """
    config = search_config(run)
    executor = SimulatedExecutor(run.workers)
    if run.sampler == PREDICTED and not table.predicted:
        raise UsageError(f"{PREDICTED} needs {beside(table.path, '_predicted.csv')}")
    predicted = table.predicted if run.sampler == PREDICTED else {}
    proposer = TableProposer(table, config, predicted)
    with tempfile.TemporaryDirectory(prefix="nas-attn-bench-") as folder:
        store = TrialStore("bench", InMemoryStorage(), table.objectives, create=True)
        leases = TrialLeases(store, Path(folder), heartbeat_seconds=600, grace_seconds=1800)
        try:
            loop = _TimedLoop(
                store=store,
                leases=leases,
                proposer=proposer,
                config=config,
                build_job=_job_builder(table, Path(folder)),
                executor=executor,
            )
            executor.run(loop)
        finally:
            leases.close()
    trials = [store.cached[n] for n in sorted(loop.ended, key=lambda n: (loop.ended[n], n))]
    return Outcome(
        [
            Ended(t.plan.dumps(), t.updates, loop.ended[t.number], t.is_trained)
            for t in trials
            if t.plan is not None
        ],
        proposer.seconds,
    )


def search_config(run: Run) -> SearchConfig:
    """The section `search` of a study that searches so.

    Raises:
        ConfigError: there is no such sampler or rule.
    """
    section: dict[str, Any] = {"sampler": run.sampler, "trials": run.trials, "seed": run.seed}
    if run.sampler == PREDICTED:
        section["sampler"] = "known_cost"
    try:
        return SearchConfig.model_validate({**section, "stopping": {"rule": run.rule}})
    except ValidationError as error:
        raise ConfigError("the benchmark", faults_of(error, model=SearchConfig)) from None


def _job_builder(table: SearchTable, folder: Path) -> JobBuilder:
    # The seconds of a virtual training are those of its curve.
    replay = ReplayConfig(curves=table.path.absolute())

    def build(number: int, plan: AttentionPlan, _: StartFolders) -> TrialJob:
        text, trial = plan.dumps(), folder / f"{number:05d}"
        total = expected_total(table, plan)
        command = replay_command(replay, text, total, table.seed, trial)
        return TrialJob(
            number=number,
            folder=str(trial),
            metric=table.objectives.metric,
            parameters=total,
            runs=(SeedRun(seed=table.seed, folder=str(trial), command=tuple(command)),),
            plan=plan.to_json(),
            last_update=table.curves[text, table.seed].points[-1].num_updates,
        )

    return build


def expected_total(table: SearchTable, plan: AttentionPlan) -> int:
    """Parameters of a plan before training, as its job names them."""
    return table.costs.sizer.size(plan).total
