"""A study without fairseq: tiny shapes, an executor that computes losses, no data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nas_attn.attention.counting import ModelSize
from nas_attn.plan import AttentionPlan, SiteShape
from nas_attn.search.config import SearchConfig
from nas_attn.search.driver import Conductor
from nas_attn.search.record import Record, open_storage
from nas_attn.space import SearchSpace, SpaceConfig
from nas_attn.training.model import Sizer
from nas_attn.training.worker import Progress, SeedRun, TrialJob, TrialResult

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


def make_sizer() -> Sizer:
    return Sizer(SHAPES, ModelSize(0, 1000, 3000, 3000))


def make_conductor(folder: Path, space: SearchSpace | None = None, **settings: object) -> Conductor:
    config = SearchConfig.model_validate({"trials": 12, "startup_trials": 5, **settings})

    def build_job(number: int, plan: AttentionPlan) -> TrialJob:
        trial = folder / f"{number:05d}"
        run = SeedRun(
            seed=1,
            folder=str(trial / "seed-1"),
            command=("fairseq-train", plan.dumps(), "--save-dir", "x"),
        )
        total = make_sizer().size(plan).total
        return TrialJob(
            number=number, folder=str(trial), metric="loss", parameters=total, runs=(run,)
        )

    return Conductor(
        record=Record("fake", open_storage(None, folder), "total", create=True),
        space=space or make_space(),
        sizer=make_sizer(),
        config=config,
        build_job=build_job,
    )


def loss_of(job: TrialJob) -> float:
    """Falls with parameters, differs by plan, and is the same every time."""
    plan = AttentionPlan.parse(job.runs[0].command[1])
    return 2e5 / job.parameters + int(plan.digest[:4], 16) / 65536


class FakeExecutor:
    """Runs jobs at once, a few side by side, and dies when told to."""

    def __init__(
        self,
        workers: int = 2,
        die_after: int | None = None,
        error: Callable[[TrialJob], str | None] = lambda job: None,
        prune: Callable[[AttentionPlan], tuple[AttentionPlan, ...]] = lambda plan: (),
    ) -> None:
        self.workers = workers
        self.die_after = die_after
        self.error = error
        self.prune = prune
        self.ran: list[int] = []

    def run(self, conductor: Conductor) -> None:
        waiting: list[TrialJob] = []
        while True:
            while len(waiting) < self.workers and (job := conductor.next_job()) is not None:
                waiting.append(job)
            if not waiting:
                return
            if self.die_after is not None and len(self.ran) >= self.die_after:
                raise KeyboardInterrupt
            job = waiting.pop(0)
            conductor.progress(job.number, Progress(seed=1, num_updates=5, loss=9.0))
            error = self.error(job)
            losses = () if error else (loss_of(job),)
            pruned = self.prune(AttentionPlan.parse(job.runs[0].command[1]))
            plans = tuple(plan.to_json() for plan in pruned)
            result = TrialResult(losses=losses, plans=plans, seconds=2.0, error=error)
            conductor.finish(job.number, result)
            self.ran.append(job.number)
