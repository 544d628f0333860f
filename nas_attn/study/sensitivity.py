"""What conversions are measured on: the trained baseline of a study, or a bare checkpoint."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nas_attn.bleu import DEFAULT, BleuTokenizer
from nas_attn.config_model import faults_of
from nas_attn.engine.candidates import FixedCandidates
from nas_attn.engine.config import ExecutionConfig, ResourcesConfig, SearchConfig
from nas_attn.engine.objectives import Objectives
from nas_attn.errors import ConfigError, ConfigIssue
from nas_attn.fairseq_tools.config import DataConfig
from nas_attn.fairseq_tools.costs import CostModel, available_costs
from nas_attn.fairseq_tools.data import PreparedData, load_prepared
from nas_attn.fairseq_tools.folders import languages_of
from nas_attn.fairseq_tools.measure import (
    CHANGE,
    DIVERGENCE,
    DIVERGENCE_ERROR,
    ERROR,
    METRIC,
    measure_command,
)
from nas_attn.fairseq_tools.models import load_dictionaries, site_shapes
from nas_attn.fairseq_tools.trained import load_trained
from nas_attn.measures import Scores
from nas_attn.plan import AttentionPlan
from nas_attn.space import SearchSpace, Votes
from nas_attn.study.inheritance import inherits_everywhere
from nas_attn.study.spaces import space_over
from nas_attn.study.study import Study
from nas_attn.trials.job import SeedRun, TrialJob


@dataclass(frozen=True, kw_only=True)
class SensitivityTarget:
    """A trained model whose conversions can be measured.

    Args:
        name: Name of the study, or of the checkpoint's run folder.
        runs: Folder that holds run folders.
        space: The conversions that are measured.
        baseline: Plan of the trained model.
        costs: Exact costs of plans.
        objectives: Objectives that trained trials are weighed by, with the limits on plans.
        task: Task of the training.
        data: Data set that the loss is measured on.
        seed: Seed of the measured training run.
        is_same_metric: Whether trials are trained for the metric that is measured.
        search: Search settings, of which the seed draws random plans.
        execution: Execution settings of the measurements.
        resources: Resources of one measurement.
        settings: Settings that must not change between two starts of the measurements.
        checkpoint: File of the trained model; None where only earlier measurements are read.
        distils: Whether converted modules are trained alone before they are measured.
        is_start: Whether warm trials start from such conversions as are measured.
        bleu_tokenizer: Name of sacreBLEU's tokenizer for the target language.
        run_folder: Its run folder, if that is not NAME in `runs`.
    """

    name: str
    runs: Path
    space: SearchSpace
    baseline: AttentionPlan
    costs: CostModel
    objectives: Objectives
    task: str
    data: PreparedData
    seed: int
    is_same_metric: bool
    search: SearchConfig
    execution: ExecutionConfig
    resources: ResourcesConfig
    settings: dict[str, Any]
    checkpoint: Path | None = None
    distils: bool = False
    is_start: bool = True
    bleu_tokenizer: BleuTokenizer = DEFAULT
    run_folder: Path | None = None

    @property
    def measurements(self) -> Path:
        """Folder of the measurements and of what follows; of distilled modules one of its own."""
        return self.folder / ("sensitivity-distilled" if self.distils else "sensitivity")

    @property
    def scores(self) -> Scores:
        """How single conversions are scored."""
        return self.search.scores_where(distils=self.distils)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run_folder or (self.runs / self.name).absolute()

    @property
    def data_folder(self) -> Path:
        """The folder of the data set."""
        return self.data.folder

    def settled(self, votes: Votes) -> SensitivityTarget:
        """The target with what votes on the trained model have decided of its space."""
        return replace(self, space=self.space.settled(votes)) if votes else self

    def inherits(self, plan: AttentionPlan) -> bool:
        """Whether a model of a plan can take over what the trained one has learned."""
        return inherits_everywhere(plan, self.space.shapes, distilled=self.distils)

    def given_plans(self, plans: Sequence[AttentionPlan]) -> FixedCandidates:
        """Proposes these plans."""
        return FixedCandidates(
            plans, self.space, self.costs, self.objectives, self.search, self.baseline
        )

    def build_measurement(self, number: int, plan: AttentionPlan, calibration: Path) -> TrialJob:
        """What an executor needs to measure a conversion, before any training.

        Args:
            number: Number of the measurement.
            plan: Plan that the checkpoint is converted to.
            calibration: File that `calibrate` has made of the checkpoint.
        """
        assert self.checkpoint is not None, "only earlier measurements can be read"
        folder = self.measurements / "trials" / plan.digest
        command = measure_command(
            self.checkpoint, plan, self.data.folder, calibration, distil=self.distils
        )
        run = SeedRun(seed=self.seed, folder=str(folder / "run"), command=tuple(command))
        return TrialJob(
            number=number,
            folder=str(folder),
            metric=METRIC,
            parameters=self.costs.sizer.size(plan).total,
            runs=(run,),
            threads=self.resources.cpus,
            plan=plan.to_json(),
            data_folder=str(self.data.folder),
            hang_seconds=60 * self.execution.hang_minutes,
            needs=(str(self.checkpoint), str(calibration)),
            figures=(CHANGE, ERROR),
            further_figures=(DIVERGENCE, DIVERGENCE_ERROR),
        )


def target_of_study(
    study: Study,
    checkpoint: Path | None,
    space: SearchSpace | None = None,
    *,
    distil: bool = False,
) -> SensitivityTarget:
    """A study's trained baseline as what is measured.

    Args:
        study: Study whose baseline it is.
        checkpoint: Checkpoint of the trained baseline; None where only earlier measurements are
            read.
        space: Space that is measured; the study's own if left out.
        distil: Whether converted modules are trained alone before they are measured, also where the
            study's warm starts do not.

    Raises:
        ConfigError: the model cannot be built with the data set's dictionaries.
        DataError: the data set is not prepared.
    """
    config = study.config
    # fairseq logs cross entropy that is not smoothed as loss only.
    criterion = str(config.training.arguments.get("criterion", "cross_entropy"))
    is_smoothed = "label_smoothed" in criterion
    loss = config.objectives.metric
    return SensitivityTarget(
        name=config.name,
        runs=study.runs,
        run_folder=study.run_folder,
        space=study.space if space is None else space,
        baseline=study.baseline,
        costs=study.costs,
        objectives=study.objectives,
        task=config.training.task,
        data=study.data_set,
        seed=config.training.seeds[0],
        is_same_metric=loss == METRIC or (loss == "loss" and not is_smoothed),
        search=config.search,
        execution=config.execution,
        resources=config.resources,
        settings=study.settings(),
        checkpoint=checkpoint,
        distils=distil or config.search.warm_start.distil,
        is_start=config.search.warm_start.distil or not distil,
        bleu_tokenizer=config.objectives.bleu_tokenizer,
    )


def target_of_checkpoint(
    checkpoint: Path,
    data: Path,
    space: str,
    *,
    cost: str,
    runs: Path,
    execution: ExecutionConfig,
    distil: bool = False,
) -> SensitivityTarget:
    """A trained checkpoint, without a study, as what is measured.

    Its name ends with a digest of the checkpoint's content and the data, so that another one gets a
    run folder of its own.

    Args:
        checkpoint: The file.
        data: Binarised data set.
        space: Name of a shipped space, or path of a file.
        cost: Cost that plans are to save.
        runs: Folder that holds run folders.
        execution: Execution settings of the measurements.
        distil: Whether converted modules are trained alone before they are measured.

    Raises:
        ConfigError: the space does not fit the model, there is no such cost, or fairseq refuses
            the data's folder.
        NasAttnError: the checkpoint or the data are unfit.
    """
    trained = load_trained(checkpoint)
    arguments = trained.arguments
    task = str(trained.state["cfg"]["task"]["_name"]).removeprefix("reported_")
    prepared = load_prepared(data, languages_of(trained.state["cfg"]["task"]))
    if cost not in available_costs(task):
        offer = ", ".join(available_costs(task))
        raise ConfigError("--cost", [ConfigIssue(cost, f"{task} has no such cost; it has {offer}")])
    offered = space_over(space, site_shapes(arguments))
    prepared = _absolute(prepared)
    settings = _settings_of(checkpoint, prepared)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return SensitivityTarget(
        name=f"{plain_name(checkpoint)}-{digest[:8]}",
        runs=runs,
        space=offered,
        baseline=AttentionPlan.parse(arguments.attention_plan),
        costs=CostModel.of(
            arguments, load_dictionaries(prepared, task), with_flops=cost == "flops"
        ),
        objectives=Objectives(metric=METRIC, maximise=False, costs=(cost,), limits={}),
        task=task,
        data=prepared,
        seed=1,
        is_same_metric=True,
        search=SearchConfig(),
        execution=execution,
        resources=ResourcesConfig(),
        settings=settings,
        checkpoint=checkpoint.absolute(),
        distils=distil,
    )


def _absolute(data: PreparedData) -> PreparedData:
    """A data set by its absolute path, which fairseq has to take."""
    try:
        DataConfig(folder=data.folder, languages=list(data.languages))
    except ValidationError as error:
        raise ConfigError("--data", faults_of(error)) from None
    return replace(data, folder=data.folder.absolute())


def _settings_of(checkpoint: Path, data: PreparedData) -> dict[str, Any]:
    """What measurements of a checkpoint depend on."""
    with checkpoint.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return {"checkpoint": content, "data": str(data.folder)}


def plain_name(checkpoint: Path) -> str:
    """A checkpoint's name after its folder and file, as earlier versions named its run folder."""
    said = f"{checkpoint.absolute().parent.name}-{checkpoint.stem}"
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", said)[-100:].lstrip("_.-") or "checkpoint"
