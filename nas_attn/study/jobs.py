"""Jobs of a study's trials: the commands that train, measure and evaluate plans."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from nas_attn.errors import UsageError
from nas_attn.fairseq_tools.arguments import last_epoch_and_update
from nas_attn.fairseq_tools.commands import (
    convert_command,
    decoding_command,
    loss_command,
    training_command,
    with_value,
)
from nas_attn.fairseq_tools.config import TrainingConfig
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.fine_tuning import count_updates, fine_tuning
from nas_attn.fairseq_tools.models import Sizer
from nas_attn.measures import maximises
from nas_attn.plan import AttentionPlan
from nas_attn.simulation.command import replay_command
from nas_attn.simulation.synthetic import curve_of
from nas_attn.study.config import StudyConfig
from nas_attn.study.devices import count_processes
from nas_attn.study.evaluation import evaluation_of
from nas_attn.study.inheritance import inherits_everywhere, plans_of_other_seeds
from nas_attn.study.moved import folder_today
from nas_attn.trials.job import CHECKPOINT, NO_FOLDERS, SeedRun, StartFolders, TrialJob
from nas_attn.trials.layout import BEST, CHECKPOINTS, START


@dataclass(frozen=True, kw_only=True)
class TrialJobs:
    """Builds what an executor needs to run trials.

    Args:
        config: Configuration of the study.
        folder: Run folder of the study.
        data: The data set.
        sizer: Counter of the parameters of plans.
        lengthened: How many times as long the fine-tuning of some plans is.
        as_offered: Function that gives a plan with its votes, in place of the heads that those on
            the first seed's baseline left.
    """

    config: StudyConfig
    folder: Path
    data: PreparedData
    sizer: Sizer
    lengthened: Mapping[AttentionPlan, float] = field(default_factory=dict)
    as_offered: Callable[[AttentionPlan], AttentionPlan] = lambda plan: plan

    @cached_property
    def _whole_updates(self) -> int:
        gpus = count_processes(self.config.resources.gpus)
        return count_updates(self.config.training, self.data, gpus=gpus)

    def _tuning_updates(self, times: float) -> int:
        fraction = self.config.search.warm_start.least_fraction
        return max(1, round(times * fraction * self._whole_updates))

    @property
    def tuning_updates(self) -> tuple[int, int]:
        """The fewest and the most updates that end a trial where there are warm starts."""
        return self._tuning_updates(1.0), self._tuning_updates(
            self.config.search.warm_start.longest
        )

    def fine_tuning(self, plan: AttentionPlan) -> TrainingConfig:
        """The training that ends the trial of a plan where there are warm starts."""
        warm = self.config.search.warm_start
        return fine_tuning(
            self.config.training,
            self._tuning_updates(self.lengthened.get(plan, 1.0)),
            learning_rate=warm.learning_rate,
            replaced=warm.arguments,
            is_taught=warm.is_taught,
        )

    def search_trial(
        self, number: int, plan: AttentionPlan, start: StartFolders = NO_FOLDERS
    ) -> TrialJob:
        """A trial of the search.

        Args:
            number: Number of the trial.
            plan: Plan for all attention.
            start: Folders that warm trials start from.
        """
        folder = self.folder / "trials" / f"{number:05d}"
        job = self._job(number, plan, folder, self.config.training.seeds, test=False)
        warm_start = self.config.search.warm_start
        if not warm_start.is_on:
            return job
        return self._with_start(job, plan, start if warm_start.from_baseline else NO_FOLDERS)

    def cold_trial(
        self, number: int, plan: AttentionPlan, start: StartFolders = NO_FOLDERS
    ) -> TrialJob:
        """A trial that starts from scratch, beside a warm one; its teacher is the same."""
        folder = self.folder / "cold" / plan.digest
        job = self._job(number, plan, folder, self.config.training.seeds, test=False)
        return self._with_start(job, plan, start, is_cold=True)

    def confirmation(self, number: int, plan: AttentionPlan, seeds: Sequence[int]) -> TrialJob:
        """A training of a plan with other seeds, evaluated on the test set."""
        # By plan: another confirmation, with more seeds or other points, finds what is trained.
        folder = self.folder / "confirm" / plan.digest
        return self._job(number, plan, folder, seeds, test=True)

    def _training(
        self, training: TrainingConfig, plan: AttentionPlan, seed: int, save_dir: Path
    ) -> list[str]:
        objectives = self.config.objectives
        return training_command(
            training,
            self.data,
            plan,
            seed=seed,
            metric=objectives.metric,
            save_dir=save_dir,
            bleu_tokenizer=objectives.bleu_tokenizer,
        )

    def _with_start(
        self,
        job: TrialJob,
        plan: AttentionPlan,
        start_from: StartFolders,
        *,
        is_cold: bool = False,
    ) -> TrialJob:
        """A job with the checkpoint made that its trainings start from; they fine-tune it."""
        warm = self.config.search.warm_start
        has_baseline, is_taught = start_from.baseline is not None, warm.is_taught
        is_warm = (
            has_baseline
            and not is_cold
            and inherits_everywhere(plan, self.sizer.shapes, distilled=warm.distil)
        )
        tuning = self.fine_tuning(plan)
        elsewhere = plans_of_other_seeds(plan, self.as_offered(plan), self.sizer.shapes)
        runs, needs = [], []
        for run in job.runs:
            is_first = run.seed == self.config.training.seeds[0]
            converted, tuned = (plan, plan) if is_first or not is_warm else elsewhere
            made = Path(run.folder) / START / BEST
            # The baseline learns from what it was before.
            teacher = self._before_tuning(start_from, run.seed) if has_baseline else made
            if is_warm:
                trained = self._trained(start_from, run.seed)
                needs.append(str(trained))
                start = convert_command(trained, converted, self.data, made, distil=warm.distil)
            else:
                start = with_value(list(run.command), "--save-dir", str(made.parent))
            command = self._training(tuning, tuned, run.seed, Path(run.folder) / CHECKPOINTS)
            command += ["--finetune-from-model", str(made)]
            if is_taught:
                command += ["--teacher", str(teacher)]
                needs += [str(teacher)] if has_baseline else []
            runs.append(replace(run, command=tuple(command), start=tuple(start)))
        last_epoch, last_update = last_epoch_and_update(tuning)
        return replace(
            job,
            runs=tuple(runs),
            needs=tuple(dict.fromkeys(needs)),
            last_epoch=last_epoch,
            last_update=last_update,
        )

    def _before_tuning(self, start_from: StartFolders, seed: int) -> Path:
        """The baseline's checkpoint from before its fine-tuning."""
        folder = folder_today(str(start_from.baseline), self.folder)
        return folder / f"seed-{seed}" / START / BEST

    def _trained(self, start_from: StartFolders, seed: int) -> Path:
        """The checkpoint that is converted: the baseline's before fine-tuning, a parent's after."""
        if start_from.parent is None:
            return self._before_tuning(start_from, seed)
        return folder_today(start_from.parent, self.folder) / f"seed-{seed}" / CHECKPOINTS / BEST

    def _job(
        self, number: int, plan: AttentionPlan, folder: Path, seeds: Sequence[int], *, test: bool
    ) -> TrialJob:
        config = self.config
        runs = self._runs(plan, folder, seeds, test=test and config.replay is None)
        measure: Sequence[str] = ()
        if "decoding_seconds" in config.objectives.costs:
            measure = decoding_command(config.training, self.data, Path(CHECKPOINT))
        if (measure or any(run.evaluation for run in runs)) and os.pathsep in str(folder):
            raise UsageError(
                f"fairseq-generate cuts names of files at {os.pathsep!r}, and the trial's folder "
                f"is {folder}: search in a folder without one (--runs)"
            )
        last_epoch, last_update = self._end(plan, seeds[-1])
        return TrialJob(
            number=number,
            folder=str(folder),
            metric=config.objectives.metric,
            maximise=maximises(config.objectives.metric),
            parameters=self.sizer.size(plan).total,
            runs=tuple(runs),
            threads=config.resources.cpus,
            plan=plan.to_json(),
            data_folder=str(self.data.folder),
            hang_seconds=60 * config.execution.hang_minutes,
            measure=tuple(measure),
            measure_runs=config.objectives.decoding_runs,
            last_epoch=last_epoch,
            last_update=last_update,
        )

    def _runs(
        self, plan: AttentionPlan, folder: Path, seeds: Sequence[int], *, test: bool
    ) -> list[SeedRun]:
        """A training for each seed, with the commands that evaluate on the test set if wanted."""
        config = self.config
        evaluation: Sequence[str] = ()
        test_loss: Sequence[str] = ()
        if test:
            checkpoint, metric = Path(CHECKPOINT), config.objectives.metric
            evaluation = evaluation_of(config, self.data, checkpoint)
            test_loss = loss_command(config.training, self.data, checkpoint, metric, "test")
        runs = []
        for seed in seeds:
            run = folder / f"seed-{seed}"
            if config.replay is not None:
                parameters = self.sizer.size(plan).total
                command = replay_command(
                    config.replay, plan.dumps(), parameters, seed, run / CHECKPOINTS
                )
            else:
                command = self._training(config.training, plan, seed, run / CHECKPOINTS)
            runs.append(
                SeedRun(
                    seed=seed,
                    folder=str(run),
                    command=tuple(command),
                    evaluation=tuple(evaluation),
                    test_loss=tuple(test_loss),
                )
            )
        return runs

    def _end(self, plan: AttentionPlan, seed: int) -> tuple[int | None, int | None]:
        """The last epoch and the last update of a training, as far as they are known."""
        replay = self.config.replay
        if replay is None:
            return last_epoch_and_update(self.config.training)
        curve = curve_of(replay, plan.dumps(), self.sizer.size(plan).total, seed)
        return None, curve.points[-1].num_updates
