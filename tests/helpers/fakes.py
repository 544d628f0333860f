"""A study without fairseq: tiny shapes, an executor that computes losses, no data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from nas_attn.engine.candidates import Proposer
from nas_attn.engine.config import SearchConfig
from nas_attn.engine.leases import TrialLeases
from nas_attn.engine.loop import JobBuilder, SearchLoop
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.fairseq_tools.models import Sizer
from nas_attn.measures import ModelSize
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape
from nas_attn.space import SearchSpace, SpaceConfig, Votes
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.job import SeedRun, StartFolders, TrialJob, TrialResult, Validation

SHAPES = {
    site: SiteShape(num_layers=2, embed_dim=64, num_heads=4)
    for site in ("encoder_self", "decoder_self", "encoder_decoder")
}
SPACE = {
    "multi_head": {},
    "collaborative": {"shared_dim": [2, 4, 8, 16, 32], "content_bias": [False, True]},
}


def make_space(decide: str = "site", schemes: object = SPACE) -> SearchSpace:
    return SearchSpace(SpaceConfig.model_validate({"schemes": schemes, "decide": decide}), SHAPES)


def made_votes(heads: Mapping[float, str]) -> Votes:
    """Votes of the rule `threshold` that leave the same heads in every layer.

    Args:
        heads: The heads for each threshold, such as "0,3".
    """
    of = AttentionChoice.of
    return Votes(
        {
            (f"{site}.{layer}", of("grouped_head", keep="threshold", vote_threshold=share)): of(
                "grouped_head", kept_heads=len(left.split(",")), heads=left, alpha=0.0, beta=0.0
            )
            for site, shape in SHAPES.items()
            for layer in range(shape.num_layers)
            for share, left in heads.items()
        }
    )


OBJECTIVES = Objectives(metric="loss", maximise=False, costs=("total",), limits={})
BASELINE = AttentionPlan.uniform(AttentionChoice("multi_head"), tuple(SHAPES))
WARM = {"warm_start": {"source": "baseline"}}
"""Settings of a search whose trials start from the trained baseline."""


def make_sizer() -> Sizer:
    return Sizer(SHAPES, ModelSize(0, 1000, 3000, 3000))


class FakeCosts:
    """Parameters, and a made-up cache."""

    shapes = SHAPES

    def known(self, plan: AttentionPlan) -> dict[str, int]:
        size = make_sizer().size(plan)
        return {**size._asdict(), "cache_bytes": size.attention // 7}


def make_loop(
    folder: Path,
    space: SearchSpace | None = None,
    *,
    objectives: Objectives = OBJECTIVES,
    storage: BaseStorage | None = None,
    retries: int = 2,
    **settings: object,
) -> SearchLoop:
    config = SearchConfig.model_validate({"trials": 12, "startup_trials": 5, **settings})

    def build_job(number: int, plan: AttentionPlan, start: StartFolders) -> TrialJob:
        trial = folder / f"{number:05d}"
        run = SeedRun(
            seed=1,
            folder=str(trial / "seed-1"),
            command=("fairseq-train", plan.dumps(), "--save-dir", "x", "--seed", "1"),
        )
        total = make_sizer().size(plan).total
        return TrialJob(
            number=number, folder=str(trial), metric="loss", parameters=total, runs=(run,)
        )

    store = TrialStore("fake", storage or open_storage(None, folder), objectives, create=True)
    leases = TrialLeases(store, folder, heartbeat_seconds=60, grace_seconds=180)
    DRIVERS.append(leases)
    return SearchLoop(
        store=store,
        leases=leases,
        proposer=Proposer(space or make_space(), FakeCosts(), objectives, config, BASELINE),
        config=config,
        build_job=build_job,
        retries=retries,
    )


DRIVERS: list[TrialLeases] = []


def kill_drivers() -> None:
    """Let the drivers so far die: their locks go, and nobody says that they end."""
    while DRIVERS:
        leases = DRIVERS.pop()
        leases._over.set()
        leases._file.close()


def loss_of(job: TrialJob) -> float:
    """Falls with parameters, differs by plan, and is the same every time."""
    plan = AttentionPlan.parse(job.runs[0].command[1])
    return 2e5 / job.parameters + int(plan.digest[:4], 16) / 65536


def trained(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [trial for trial in trials if trial.is_trained]


VALIDATIONS = 9


class FakeExecutor:
    """Runs jobs at once, a few side by side, and dies when asked to."""

    def __init__(
        self,
        workers: int = 2,
        die_after: int | None = None,
        error: Callable[[TrialJob], str | TrialResult | None] = lambda job: None,
        prune: Callable[[AttentionPlan], tuple[AttentionPlan, ...]] = lambda plan: (),
    ) -> None:
        self.workers = workers
        self.die_after = die_after
        self.error = error
        self.prune = prune
        self.ran: list[int] = []

    def run(self, loop: SearchLoop) -> None:
        waiting: list[TrialJob] = []
        while True:
            while len(waiting) < self.workers and (job := loop.next_job()) is not None:
                waiting.append(job)
            if not waiting:
                if loop.is_over():
                    return
                time.sleep(0.01)
                continue
            if self.die_after is not None and len(self.ran) >= self.die_after:
                kill_drivers()
                raise KeyboardInterrupt
            job = waiting.pop(0)
            self.ran.append(job.number)
            loop.finish(job.number, self._train(loop, job))

    def _train(self, loop: SearchLoop, job: TrialJob) -> TrialResult:
        error = self.error(job)
        if isinstance(error, TrialResult):
            return error
        final = loss_of(job)
        for validation in range(1, VALIDATIONS + 1):
            news = Validation(
                seed=1,
                num_updates=5 * validation,
                loss=final + 2.0 / validation - 2.0 / VALIDATIONS,
                validation=validation,
            )
            if not loop.progress(job.number, news):
                return TrialResult(seconds=1.0)
        pruned = self.prune(AttentionPlan.parse(job.runs[0].command[1]))
        plans = tuple(plan.to_json() for plan in pruned)
        failure = FailureKind.TRAINING if error else None
        losses = () if error else (final,)
        return TrialResult(losses=losses, plans=plans, seconds=2.0, error=error, failure=failure)


def begin(folder: Path) -> TrialStore:
    """A study with one entry of metadata, in the journal of a run folder."""
    store = TrialStore("one", open_storage(None, folder), OBJECTIVES, create=True)
    store.set_metadata("first", 1)
    return store


def notes(folder: Path) -> dict[str, Any]:
    """The metadata of such a study."""
    return TrialStore("one", open_storage(None, folder), OBJECTIVES).metadata()


def fail_trial_3(job: TrialJob) -> str | None:
    """For a `FakeExecutor`: one trial ends with an error that looks like markup."""
    return "no [red]room[/]" if job.number == 3 else None


def telling_jobs(folder: Path) -> JobBuilder:
    """Jobs for `tests.helpers.telling`; what trainings see goes to the file `told`."""

    def build(number: int, plan: AttentionPlan, _: StartFolders) -> TrialJob:
        total = make_sizer().size(plan).total
        trial, told = folder / f"{number:05d}", str(folder / "told")
        run = SeedRun(seed=1, folder=str(trial / "seed-1"), command=(str(total), told))
        return TrialJob(
            number=number,
            folder=str(trial),
            metric="loss",
            parameters=total,
            runs=(run,),
            plan=plan.to_json(),
        )

    return build
