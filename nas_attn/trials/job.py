"""What a trial is to run, what it says meanwhile, and how it ended."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from nas_attn.trials.failures import FailureKind

CHECKPOINT = "{checkpoint}"
"""Stands in an evaluation or measurement for the best checkpoint of its seed, pruned if it is."""


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """One training of a trial.

    Args:
        seed: Seed of fairseq-train.
        folder: Folder of its report, logs and checkpoints.
        command: The training.
        evaluation: The command that tests what was trained and pruned; empty for none. An argument
            `CHECKPOINT` becomes the path of the checkpoint.
        test_loss: The command that measures the job's metric on the test set, as `evaluation`.
        start: A training or a conversion that makes, in the folder `START`, the checkpoint that the
            training starts from; empty for none.
    """

    seed: int
    folder: str
    command: tuple[str, ...]
    evaluation: tuple[str, ...] = ()
    test_loss: tuple[str, ...] = ()
    start: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SeedRun:
        names = ("command", "evaluation", "test_loss", "start")
        commands = {name: tuple(data.get(name, ())) for name in names}
        return cls(**{**data, **commands})

    @property
    def is_trained_first(self) -> bool:
        """Whether its start is a training of its own."""
        return self.start[:1] == ("fairseq-train",)


@dataclass(frozen=True, kw_only=True)
class StartFolders:
    """Folders of the trained trials that a trial may start from.

    Args:
        baseline: Folder of the trained baseline; None where there is none.
        parent: Folder of a warm trial whose fine-tuned model is converted in place of the
            baseline's; None if it is the baseline's.
    """

    baseline: str | None = None
    parent: str | None = None


NO_FOLDERS = StartFolders()


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """All that is needed to run a trial, on this machine or another.

    Args:
        number: The trial's number in the record.
        folder: Folder of its plan, commands, logs and checkpoints.
        metric: Name of the validation metric.
        maximise: Whether it is better when higher.
        parameters: Total parameters that the model must turn out to have.
        runs: Trainings, one for each seed.
        threads: CPU threads of a training.
        plan: The attention plan as JSON, to be kept in the folder.
        data_folder: Prepared data that must be there; empty if none is asked for.
        hang_seconds: Seconds after which a process that writes nothing is stopped; None never stops
            one.
        measure: A fairseq-generate command whose decoding is timed on the first seed's checkpoint;
            empty for none. An argument `CHECKPOINT` becomes its path.
        measure_runs: Number of times that it is timed; the median counts.
        last_epoch: Epoch in which a training ends; None if it has no such limit.
        last_update: Update after which it ends; None if it has no such limit.
        needs: Files of another trial that must be there.
        figures: Names of validation metrics that are kept of the first seed's last validation.
        further_figures: Names of those that are kept as well if the validation has them.
        alone: Whether no other trial is to share its GPUs meanwhile, or on a CPU the machine.
        has_machine: Whether, if it is to be alone, that is on the whole machine.
    """

    number: int
    folder: str
    metric: str
    parameters: int
    runs: tuple[SeedRun, ...]
    threads: int = 1
    plan: dict[str, Any] = field(default_factory=dict)
    data_folder: str = ""
    hang_seconds: float | None = None
    measure: tuple[str, ...] = ()
    measure_runs: int = 3
    maximise: bool = False
    last_epoch: int | None = None
    last_update: int | None = None
    needs: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    further_figures: tuple[str, ...] = ()
    alone: bool = False
    has_machine: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrialJob:
        runs = tuple(SeedRun.from_json(run) for run in data["runs"])
        names = ("measure", "needs", "figures", "further_figures")
        lists = {name: tuple(data.get(name, ())) for name in names}
        return cls(**{**data, "runs": runs, **lists})


@dataclass(frozen=True, kw_only=True)
class Validation:
    """One validation of a running trial.

    Args:
        seed: Seed of the training.
        num_updates: Updates of the training so far.
        loss: Value of the job's metric.
        validation: Number of validations that seed has had, this one included.
        settled: Whether nothing more will be pruned: what was measured is the model that is left.
        seed_index: Place of the seed among the job's runs, 0 for the first.
        is_last: The trial is in its last epoch, so that ending it saves next to nothing.
        is_start: Whether it is of the training whose checkpoint the trial's own starts from;
            nothing is judged by it.
    """

    seed: int
    num_updates: int
    loss: float
    validation: int = 1
    settled: bool = True
    seed_index: int = 0
    is_last: bool = False
    is_start: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial ended.

    Args:
        losses: The best validation loss of each seed, in the order of the job's runs; after
            pruning, if there is any.
        plans: Plans that pruning left, for each seed; empty if the plan prunes nothing.
        seconds: Time spent training, in seconds, all seeds and earlier attempts included.
        error: Reason why there is no result; None if there is one.
        failure: The kind of the error; None if there is a result.
        host_memory: Whether the memory that ran out was the machine's, not a GPU's.
        measured: Figures of the trained model by name; `decoding_seconds` is for a sentence.
        tests: Scores by name, for each seed; empty if the job evaluates nothing.
        updates: Updates of all trainings of the trial.
        memory: The most memory that a process of its trainings took, in MiB of `gpu` or `cpu`;
            empty if they did not say.
    """

    losses: tuple[float, ...] = ()
    plans: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0
    error: str | None = None
    failure: FailureKind | None = None
    host_memory: bool = False
    measured: dict[str, float] = field(default_factory=dict)
    tests: tuple[dict[str, float], ...] = ()
    updates: int = 0
    memory: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrialResult:
        lists = {name: tuple(data[name]) for name in ("losses", "plans", "tests")}
        failure = None if data["failure"] is None else FailureKind(data["failure"])
        return cls(**{**data, **lists, "failure": failure})

    @property
    def loss(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.losses)
