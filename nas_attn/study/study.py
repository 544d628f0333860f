"""Studies: the file a user writes, checked whole, and all that is built from it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, ValidationError

import nas_attn
from nas_attn.attention import Attention
from nas_attn.attention.counting import build_on_meta, expected_plan, least_plan
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.pruning import PrunableAttention
from nas_attn.bleu import DEFAULT
from nas_attn.config_model import Section, faults_of
from nas_attn.conversion import inherits
from nas_attn.errors import ConfigError, DataError, Fault, PlanError, RefusedError
from nas_attn.fairseq_tools.commands import (
    check_arguments,
    check_bleu,
    check_metric,
    convert_command,
    decoding_command,
    evaluation_command,
    last_epoch_and_update,
    loss_command,
    maximises,
    training_arguments,
    training_command,
    with_value,
)
from nas_attn.fairseq_tools.config import DataConfig, TrainingConfig
from nas_attn.fairseq_tools.costs import CostModel, available_costs
from nas_attn.fairseq_tools.data import (
    PreparedData,
    find_split_files,
    load_prepared,
    prepare,
    read_corpus,
    read_manifest,
)
from nas_attn.fairseq_tools.demo_data import LANGUAGES, make_demo_corpus
from nas_attn.fairseq_tools.fine_tuning import count_updates, fine_tuning
from nas_attn.fairseq_tools.flags import given, without_refused
from nas_attn.fairseq_tools.folders import missing_splits
from nas_attn.fairseq_tools.models import (
    Sizer,
    blank_dictionary,
    check_model,
    load_dictionaries,
    site_shapes,
)
from nas_attn.fairseq_tools.parsed import check_training
from nas_attn.masking import mask
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape
from nas_attn.search.candidates import GivenPlans, Proposer
from nas_attn.search.config import (
    ExecutionConfig,
    ObjectivesConfig,
    ResourcesConfig,
    SearchConfig,
)
from nas_attn.search.objectives import Objectives
from nas_attn.search.plan_costs import expected_costs, least_costs
from nas_attn.search.samplers import StratifiedProposer
from nas_attn.search.trial_record import TrialRecord
from nas_attn.shell import shell_text
from nas_attn.simulation.command import replay_command
from nas_attn.simulation.synthetic import ReplayConfig, curve_of
from nas_attn.space import SearchSpace, SpaceConfig
from nas_attn.space.fitting import fitting
from nas_attn.trials.job import CHECKPOINT, SeedRun, TrialJob
from nas_attn.trials.layout import BEST, CHECKPOINTS, START, best_checkpoint
from nas_attn.yaml_file import override, read_yaml

DEMO_TYPES = 200
"""Types of the demo's dictionary, at most."""

logger = logging.getLogger(__name__)

NO_VOTE = (
    "votes while it trains, and a warm start leaves no time for that: take grouped_head with "
    "kept_heads, or search without search.warm_start"
)


class StudyConfig(Section):
    """A study file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=200)]
    """Names the study in its storage and its run folder."""
    description: str = ""
    data: DataConfig
    training: TrainingConfig
    space: Annotated[
        Annotated[str, Tag("[name]")] | Annotated[SpaceConfig, Tag("[inline]")],
        Discriminator(lambda value: "[name]" if isinstance(value, str) else "[inline]"),
    ]
    """Name of a shipped search space, path of a file, or the space itself."""
    objectives: ObjectivesConfig = ObjectivesConfig()
    search: SearchConfig = SearchConfig()
    resources: ResourcesConfig = ResourcesConfig()
    execution: ExecutionConfig = ExecutionConfig()
    replay: ReplayConfig | None = None
    """Learning curves to replay instead of training, to try a search itself."""


@dataclass(frozen=True)
class Study:
    """A checked study.

    Args:
        config: what the file says.
        space: over the model that is trained.
        runs: folder that holds the run folders of all studies.
        typed: arguments by which a command finds the study again.
    """

    config: StudyConfig
    space: SearchSpace
    runs: Path
    typed: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name in the storage."""
        return self.config.name

    @property
    def folder(self) -> Path:
        """The study's run folder."""
        return (self.runs / self.name).absolute()

    @property
    def data_folder(self) -> Path:
        """The folder of the data set."""
        return self.config.data.folder.absolute()

    @property
    def search(self) -> SearchConfig:
        """How plans are chosen, and how many."""
        return self.config.search

    @property
    def execution(self) -> ExecutionConfig:
        """Where and how trials run."""
        return self.config.execution

    @property
    def resources(self) -> ResourcesConfig:
        """What one trial is given."""
        return self.config.resources

    @property
    def objectives(self) -> Objectives:
        """What is weighed."""
        config = self.config.objectives
        return Objectives.of(config, maximise=maximises(config.loss))

    @property
    def baseline(self) -> AttentionPlan:
        """Multi-head attention everywhere, which all is compared with."""
        return AttentionPlan.uniform(AttentionChoice("multi_head"), tuple(self.space.shapes))

    @cached_property
    def data_set(self) -> PreparedData:
        """The binarised data set, with the languages that are trained.

        Raises:
            DataError: it is not prepared, or lacks these languages.
        """
        data = self.config.data
        return load_prepared(data.folder.absolute(), data.trained_languages)

    @cached_property
    def costs(self) -> CostModel:
        """Exact costs of plans; needs the data set, for its dictionaries.

        Raises:
            ConfigError: the model cannot be built with these dictionaries.
            DataError: the data set is not prepared.
        """
        config = self.config.objectives
        faults = self._model_faults()
        if faults:
            raise ConfigError(f"the study {self.config.name}", faults)
        return CostModel.of(
            training_arguments(self.config.training),
            load_dictionaries(self.data_set, self.config.training.task),
            sentence_length=config.sentence_length,
            with_flops="flops" in {*config.costs, *config.limits},
        )

    def _model_faults(self) -> list[Fault]:
        """Why the model cannot be built with the data set's dictionaries, if so."""
        training = self.config.training
        dictionaries = load_dictionaries(self.data_set, training.task)
        return list(check_model(training_arguments(training), dictionaries, training.arguments))

    def proposer(self, queue: Sequence[AttentionPlan] = ()) -> Proposer:
        """Proposes plans, from an empty history; those of a queue first."""
        return Proposer(*self._proposer_arguments(), queue)

    @cached_property
    def fine_tuning(self) -> TrainingConfig:
        """The training that ends every trial where there are warm starts; needs the data set."""
        config, warm = self.config, self.config.search.warm_start
        data = self.data_set
        updates = count_updates(config.training, data, gpus=max(1, int(config.resources.gpus)))
        return fine_tuning(
            config.training,
            max(1, round(warm.fraction * updates)),
            learning_rate=warm.learning_rate,
            replaced=warm.arguments,
        )

    def inherits(self, plan: AttentionPlan) -> bool:
        """Whether a model of a plan can take over what the trained baseline has learned."""
        return inherits_everywhere(plan, self.space.shapes)

    def given_plans(self, plans: Sequence[AttentionPlan]) -> GivenPlans:
        """Proposes these plans."""
        return GivenPlans(plans, *self._proposer_arguments())

    def _proposer_arguments(
        self,
    ) -> tuple[SearchSpace, CostModel, Objectives, SearchConfig, AttentionPlan]:
        return self.space, self.costs, self.objectives, self.config.search, self.baseline

    def prepare_data(self, *, workers: int = 1) -> PreparedData:
        """Make the data set if it is not there.

        Raises:
            DataError: the text cannot be read or binarised.
        """
        data = self.config.data
        if data.folder.is_dir():
            return self.data_set
        if data.demo is not None:
            corpus = make_demo_corpus(data.demo.seed, data.demo.train_sentences)
            return prepare(
                corpus,
                LANGUAGES,
                data.folder,
                vocab_size=DEMO_TYPES,
                subword="word",
                workers=workers,
                origin=data.origin,
            )
        if data.text is None:
            raise DataError(f"data.folder {data.folder} does not exist")
        files = find_split_files(data.text.folder, data.text.languages or ["txt"])
        return prepare(
            read_corpus(files),
            data.text.languages,
            data.folder,
            vocab_size=data.text.vocab_size,
            subword=data.text.subword,
            character_coverage=data.text.character_coverage,
            workers=workers,
            origin=data.origin,
        )

    def build_job(self, number: int, plan: AttentionPlan, baseline: str | None = None) -> TrialJob:
        """What an executor needs to run a trial.

        Args:
            number: of the trial.
            plan: for all attention.
            baseline: folder of the trained baseline, from which warm trials start.
        """
        folder = self.folder / "trials" / f"{number:05d}"
        job = self._job(number, plan, folder, self.config.training.seeds, test=False)
        if not self._has_warm_start:
            return job
        from_baseline = self.config.search.warm_start.from_baseline
        return self._with_start(job, plan, baseline if from_baseline else None)

    def build_cold_job(self, number: int, plan: AttentionPlan) -> TrialJob:
        """What an executor needs to run a trial that starts from nothing, beside a warm one."""
        folder = self.folder / "cold" / plan.digest
        job = self._job(number, plan, folder, self.config.training.seeds, test=False)
        return self._with_start(job, plan, None)

    def build_confirmation(
        self, number: int, plan: AttentionPlan, seeds: Sequence[int]
    ) -> TrialJob:
        """What an executor needs to train a plan with other seeds and to open the test side."""
        # By plan: another confirmation, with more seeds or other points, finds what is trained.
        folder = self.folder / "confirm" / plan.digest
        return self._job(number, plan, folder, seeds, test=True)

    def trained_checkpoint(self, baseline: TrialRecord) -> Path:
        """The checkpoint that conversions start from: of the first seed, before any fine-tuning."""
        run = Path(str(baseline.folder)) / f"seed-{self.config.training.seeds[0]}"
        return run / START / BEST if self._has_warm_start else best_checkpoint(run)

    @property
    def _has_warm_start(self) -> bool:
        return self.config.search.warm_start.is_on

    def _with_start(self, job: TrialJob, plan: AttentionPlan, baseline: str | None) -> TrialJob:
        """A job with the checkpoint made that its trainings start from; they fine-tune it."""
        config = self.config
        data = self.data_set
        is_warm = baseline is not None and self.inherits(plan)
        runs, needs = [], []
        for run in job.runs:
            made = Path(run.folder) / START
            if is_warm:
                trained = Path(str(baseline)) / f"seed-{run.seed}" / START / BEST
                needs.append(str(trained))
                start = convert_command(trained, plan, data, made / BEST)
            else:
                start = list(run.command)
                start = with_value(start, "--save-dir", str(made))
            command = training_command(
                self.fine_tuning,
                data,
                plan,
                seed=run.seed,
                metric=config.objectives.loss,
                save_dir=Path(run.folder) / CHECKPOINTS,
                bleu_tokenizer=config.objectives.bleu_tokenizer,
            )
            command += ["--finetune-from-model", str(made / BEST)]
            runs.append(replace(run, command=tuple(command), start=tuple(start)))
        last_epoch, last_update = last_epoch_and_update(self.fine_tuning)
        return replace(
            job,
            runs=tuple(runs),
            needs=tuple(needs),
            last_epoch=last_epoch,
            last_update=last_update,
        )

    def _job(
        self, number: int, plan: AttentionPlan, folder: Path, seeds: Sequence[int], *, test: bool
    ) -> TrialJob:
        config = self.config
        data = self.data_set
        parameters = self.costs.sizer.size(plan).total
        runs = []
        last_epoch, last_update = last_epoch_and_update(config.training)
        evaluation: Sequence[str] = ()
        test_loss: Sequence[str] = ()
        if test and config.replay is None:
            checkpoint, metric = Path(CHECKPOINT), config.objectives.loss
            evaluation = self.evaluation(data, checkpoint)
            test_loss = loss_command(config.training, data, checkpoint, metric, "test")
        for seed in seeds:
            run = folder / f"seed-{seed}"
            save_dir = run / CHECKPOINTS
            if config.replay is not None:
                text = plan.dumps()
                command = replay_command(config.replay, text, parameters, seed, save_dir)
                curve = curve_of(config.replay, text, parameters, seed)
                last_epoch, last_update = None, curve.points[-1].num_updates
            else:
                command = training_command(
                    config.training,
                    data,
                    plan,
                    seed=seed,
                    metric=config.objectives.loss,
                    save_dir=save_dir,
                    bleu_tokenizer=config.objectives.bleu_tokenizer,
                )
            runs.append(
                SeedRun(
                    seed=seed,
                    folder=str(run),
                    command=tuple(command),
                    evaluation=tuple(evaluation),
                    test_loss=tuple(test_loss),
                )
            )
        measure: Sequence[str] = ()
        if "decoding_seconds" in config.objectives.costs:
            measure = decoding_command(config.training, data, Path(CHECKPOINT))
        if (measure or evaluation) and os.pathsep in str(folder):
            raise RefusedError(
                f"fairseq-generate cuts names of files at {os.pathsep!r}, and the trial's folder "
                f"is {folder}: search in a folder without one (--runs)"
            )
        return TrialJob(
            number=number,
            folder=str(folder),
            metric=config.objectives.loss,
            maximise=self.objectives.maximise,
            parameters=parameters,
            runs=tuple(runs),
            threads=config.resources.cpus,
            plan=plan.to_json(),
            data_folder=str(data.folder),
            hang_seconds=60 * config.execution.hang_minutes,
            measure=tuple(measure),
            measure_runs=config.objectives.decoding_runs,
            last_epoch=last_epoch,
            last_update=last_update,
        )

    def axis_range(self) -> tuple[float, float]:
        """The least and the most that a plan can come to, on the objectives' axis."""
        return self._range(self.objectives.axis)

    def check_limits(self) -> None:
        """See that the data set suits the model, and that limits leave anything to search.

        Raises:
            ConfigError: the model cannot be built, or every plan of the space is over a limit,
                however much of it is pruned.
        """
        faults = self._model_faults()
        if faults:
            raise ConfigError(f"the study {self.config.name}", faults)
        for name, limit in self.objectives.limits.items():
            least, _ = self._range(name)
            if least > limit:
                message = f"no plan of the space is under {limit:,.0f}: the least is {least:,.0f}"
                faults.append(Fault(f"objectives.limits.{name}", message))
        if faults:
            raise ConfigError(f"the study {self.config.name}", faults)

    def _range(self, cost: str) -> tuple[float, float]:
        low = StratifiedProposer(
            self.space, lambda plan: least_costs(self.costs, plan)[cost], seed=0
        ).low
        high = StratifiedProposer(
            self.space, lambda plan: expected_costs(self.costs, plan)[0][cost], seed=0
        ).high
        return low, high

    def evaluation_texts(self, trials: Sequence[TrialRecord]) -> dict[int, str]:
        """For each trained trial, the command that evaluates its first seed on the test set."""
        data = self.data_set
        texts = {}
        for trial in trials:
            if trial.is_trained and trial.folder is not None:
                run = Path(trial.folder) / f"seed-{self.config.training.seeds[0]}"
                checkpoint = best_checkpoint(run)
                texts[trial.number] = shell_text(self.evaluation(data, checkpoint))
        return texts

    def evaluation(self, data: PreparedData, checkpoint: Path) -> list[str]:
        """The command that evaluates a checkpoint on the test side of a data set."""
        tokenizer = self.config.objectives.bleu_tokenizer
        return evaluation_command(self.config.training, data, checkpoint, "test", tokenizer)

    def settings(self) -> dict[str, Any]:
        """What must not change between two starts of a search, or trials are not comparable."""
        config = self.config.model_dump(mode="json")
        kept: dict[str, Any] = {name: config[name] for name in ("data", "training")}
        # What is trained is kept with the data themselves (`nas_attn.study.same_data`).
        del kept["data"]["languages"]
        text = kept["data"]["text"]
        if text is not None and text["character_coverage"] == 1:
            del text["character_coverage"]  # records of old do not hold it
        objectives = config["objectives"]
        kept["objectives"] = {name: objectives[name] for name in ("loss", "costs")}
        if objectives["loss"] == "bleu" and objectives["bleu_tokenizer"] != DEFAULT:
            kept["objectives"]["bleu_tokenizer"] = objectives["bleu_tokenizer"]
        if "flops" in objectives["costs"]:
            kept["objectives"]["sentence_length"] = objectives["sentence_length"]
        if config["replay"] is not None:
            kept["replay"] = config["replay"]
        if self._has_warm_start:
            kept["warm_start"] = config["search"]["warm_start"]
            del kept["warm_start"]["rank_agreement"]
        # As JSON gives it back: with lists for tuples, so that it equals what a storage returns.
        kept["space"] = self.space.config.model_dump(mode="json")
        del kept["space"]["description"]
        settings: dict[str, Any] = json.loads(json.dumps(kept))
        return settings

    def proposing(self) -> dict[str, Any]:
        """What proposals hang on besides `settings`, by key path.

        With other values, trials on record could not be derived again.
        """
        search, objectives = self.config.search, self.config.objectives
        names = ["seed", "sampler", "strategy", "enqueue"]
        names += ["startup_trials"] if search.sampler != "stratified_random" else []
        proposing = {f"search.{name}": getattr(search, name) for name in names}
        proposing["objectives.limits"] = dict(sorted(objectives.limits.items()))
        if "flops" in objectives.limits:
            proposing["objectives.sentence_length"] = objectives.sentence_length
        return proposing


def inherits_everywhere(plan: AttentionPlan, shapes: Mapping[str, SiteShape]) -> bool:
    """Whether every module of a plan can take over what multi-head attention has learned."""
    return all(
        inherits(build_on_meta(choice, shapes[site]))
        for site, choices in plan
        for choice in choices
    )


def shipped_folder(name: str) -> Path:
    """The folder of shipped YAML files: `studies` or `search_spaces`."""
    package = Path(str(resources.files(nas_attn)))
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def shipped_names(folder: str) -> list[str]:
    """Names of the shipped files of a folder."""
    return sorted(path.stem for path in shipped_folder(folder).glob("*.yaml"))


def find_file(name: str, folder: str) -> Path:
    """A file by its path, or a shipped one by its name.

    Raises:
        ConfigError: there is neither.
    """
    path = Path(name)
    shipped = shipped_folder(folder) / f"{name}.yaml"
    try:
        if path.suffix in (".yaml", ".yml") and path.is_file():
            return path
        if shipped.is_file():
            return shipped
    except OSError as error:
        raise ConfigError(name, [Fault("(file)", f"cannot be read: {error.strerror}")]) from None
    offer = ", ".join(shipped_names(folder))
    message = f"no such file, and no shipped one of that name; shipped are {offer}"
    raise ConfigError(name, [Fault("(file)", message)])


def load_study(
    name: str,
    *,
    overrides: Sequence[str] = (),
    runs: Path = Path("runs"),
    is_read_only: bool = False,
) -> Study:
    """Load a study file and check it whole.

    Args:
        name: path of the file, or name of a shipped study.
        overrides: `KEY.PATH=VALUE` texts that replace values of the file; values are YAML.
        runs: folder for run folders.
        is_read_only: nothing is trained, so flags of fairseq that a study may not set (but could,
            once) are passed over with a warning.

    Raises:
        ConfigError: lists everything that is wrong, by key path.
    """
    path = find_file(name, "studies")
    tree = read_yaml(path)
    for text in overrides:
        override(tree, text)
    try:
        config = StudyConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(str(path), faults_of(error)) from None
    recorded = config
    if is_read_only:
        config = _without_refused(config)
    try:
        faults = _check_data(config.data, config.training.task)
    except OSError as error:
        faults = [Fault("data", f"cannot be read: {error}")]
    faults += [Fault(f"training.{f.key}", f.message) for f in check_arguments(config.training)]
    faults += _check_objectives(config)
    if not faults:
        faults += _check_training(config)
    if not faults:
        faults += _check_warm_start(config)
    space_config, space_key = _load_space(config.space, faults)
    if faults or space_config is None:
        raise ConfigError(str(path), faults)
    shapes = site_shapes(training_arguments(config.training))
    if isinstance(config.space, str):
        space_config = _fitting(config.space, space_config, shapes)
    try:
        space = SearchSpace(space_config, shapes)
    except ConfigError as error:
        located = [Fault(f"{space_key}.{f.key}", f.message) for f in error.faults]
        raise ConfigError(str(path), located) from None
    seen: dict[tuple[str, str], None] = {}
    for key, site, choice in space.choices():
        try:
            module = build_on_meta(choice, shapes[site])
        except PlanError as error:
            seen[f"{space_key}.{key}", str(error)] = None
            continue
        for message in _missing_for(module, config.training):
            seen[f"{space_key}.{key}", message] = None
        if config.search.warm_start.is_on and _prunes(module):
            seen[f"{space_key}.{key}", NO_VOTE] = None
    if seen:
        raise ConfigError(str(path), [Fault(key, message) for key, message in seen])
    typed = [name, *(part for text in overrides for part in ("--set", mask(text)))]
    if runs != Path("runs"):
        typed += ["--runs", str(runs)]
    return Study(recorded, space, runs, tuple(typed))


def _without_refused(config: StudyConfig) -> StudyConfig:
    """A study without the flags that none may set."""
    training = config.training
    arguments = without_refused(training.arguments)
    left_out = sorted(training.arguments.keys() - arguments.keys())
    if not left_out:
        return config
    logger.warning(
        "no study may set training.arguments %s any more: what was trained is shown as it is",
        ", ".join(left_out),
    )
    training = training.model_copy(update={"arguments": arguments})
    return config.model_copy(update={"training": training})


def _check_objectives(config: StudyConfig) -> list[Fault]:
    """Objectives that this training does not have."""
    faults = check_metric(config.training, config.objectives.loss)
    faults += check_bleu(config.training, config.objectives.bleu_tokenizer)
    there_are = available_costs(config.training.task)
    named = {"objectives.costs": config.objectives.costs}
    named["objectives.limits"] = list(config.objectives.limits)
    for key, names in named.items():
        for name in names:
            if name not in there_are:
                message = f"{config.training.task} has no {name}; it has {', '.join(there_are)}"
                faults.append(Fault(key, message))
    if config.replay is not None:
        if "decoding_seconds" in config.objectives.costs:
            message = "nothing is decoded where learning curves are replayed"
            faults.append(Fault("objectives.costs", message))
        if config.objectives.loss not in ("loss", "nll_loss"):
            faults.append(Fault("objectives.loss", "replayed curves have loss and nll_loss only"))
    elif config.execution.executor == "simulated":
        message = "simulated trials replay learning curves: add the section replay"
        faults.append(Fault("execution.executor", message))
    return faults


def _check_training(config: StudyConfig) -> list[Fault]:
    """What is wrong with the training as a whole: its model, its schedule, its vote."""
    training, data = config.training, config.data
    args = training_arguments(training)
    # The data set's own dictionaries may not be there yet; see `Study.check_limits`.
    size = data.text.vocab_size if data.text else DEMO_TYPES
    dictionaries = [blank_dictionary(size)]
    faults = list(check_model(args, dictionaries, training.arguments))
    if config.replay is None:
        faults += [
            Fault(f"training.{f.key}", f.message) for f in check_training(args, training.arguments)
        ]
    return faults


def _check_warm_start(config: StudyConfig) -> list[Fault]:
    """What is wrong with the fine-tuning of warm starts."""
    warm = config.search.warm_start
    if not warm.is_on:
        return []
    key = "search.warm_start"
    if config.replay is not None:
        return [Fault(key, "replayed learning curves start from nothing: leave it out")]
    training = fine_tuning(
        config.training, 1, learning_rate=warm.learning_rate, replaced=warm.arguments
    )
    faults = check_arguments(training)
    if not faults:
        # Nothing votes in fine-tuning, which spaces with a vote are refused for.
        args = training_arguments(training)
        args.vote_at_epoch = args.vote_at_update = 0
        faults = list(check_training(args, training.arguments))
    return [Fault(f"{key}.{fault.key}", fault.message) for fault in faults]


def _prunes(module: Attention) -> bool:
    return isinstance(module, PrunableAttention) and module.is_prunable


def _missing_for(module: Attention, training: TrainingConfig) -> Iterator[str]:
    """What the training lacks for attention that is grouped or pruned."""
    named = given(training.arguments)
    is_grouped = isinstance(module, GroupedHeadAttention)
    is_constrained = is_grouped and bool(module.alpha or module.beta)
    prunes = _prunes(module)
    if (is_constrained or prunes) and not str(named.get("criterion")).startswith("grouped_"):
        yield (
            "needs a criterion with the group constraint and the vote: set "
            f"training.arguments.criterion to grouped_{named.get('criterion', 'cross_entropy')}"
        )
    timed = named.get("vote-at-epoch") or named.get("vote-at-update")
    if prunes and not timed and not (is_grouped and module.centre_shift is not None):
        yield (
            "prunes, but nothing says when: set training.arguments.vote-at-epoch or "
            "vote-at-update, or the option centre_shift"
        )


def measure_space(config: SpaceConfig, sizer: Sizer) -> tuple[int, float, float]:
    """How large a space is over a model.

    Returns:
        The number of plans, and the fewest and the most parameters that one can come to,
        embeddings left out.

    Raises:
        ConfigError: the space does not fit the model.
    """
    space = SearchSpace(config, sizer.shapes)
    least = StratifiedProposer(
        space, lambda plan: sizer.size(least_plan(plan, sizer.shapes)).non_embedding, seed=0
    )
    most = StratifiedProposer(
        space,
        lambda plan: sizer.size(expected_plan(plan, sizer.shapes)[0]).non_embedding,
        seed=0,
    )
    return space.size, least.low, most.high


def load_space_config(name: str) -> SpaceConfig:
    """Load a search-space file by path or shipped name.

    Raises:
        ConfigError: lists everything that is wrong, by key path.
    """
    path = find_file(name, "search_spaces")
    try:
        return SpaceConfig.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(str(path), faults_of(error)) from None


def space_over(name: str, shapes: Mapping[str, SiteShape]) -> SearchSpace:
    """A space over a model; of a shipped one, what does not fit is left out.

    Args:
        name: of a shipped space, or path of a file.
        shapes: of the model's sites.

    Raises:
        ConfigError: lists everything that is wrong, or does not fit the model, by key path.
    """
    space = SearchSpace(_fitting(name, load_space_config(name), shapes), shapes)
    wrong = {(key, fault_of(choice, shapes[site])): None for key, site, choice in space.choices()}
    faults = [Fault(key, fault) for key, fault in wrong if fault is not None]
    if faults:
        raise ConfigError(name, faults)
    return space


def space_folder(name: str) -> str:
    """Name of a folder for what a space gives; another file gets another one.

    Raises:
        ConfigError: there is no such space.
    """
    path = find_file(name, "search_spaces")
    if _is_shipped(name):
        return path.stem
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', path.stem)[:100]}-{digest[:8]}"


def fault_of(choice: AttentionChoice, shape: SiteShape) -> str | None:
    """Why a choice does not fit a site; None if it does."""
    try:
        build_on_meta(choice, shape)
    except PlanError as error:
        return str(error)
    return None


def _is_shipped(name: str) -> bool:
    return find_file(name, "search_spaces").parent == shipped_folder("search_spaces")


def _fitting(name: str, config: SpaceConfig, shapes: Mapping[str, SiteShape]) -> SpaceConfig:
    """A shipped space without what does not fit a model; one of the user's as it is."""
    if not _is_shipped(name):
        return config
    config, left_out = fitting(config, shapes, fault_of)
    if left_out:
        logger.info("space %s, left out for this model: %s", name, "; ".join(left_out))
    return config


def _load_space(given: str | SpaceConfig, faults: list[Fault]) -> tuple[SpaceConfig | None, str]:
    if isinstance(given, SpaceConfig):
        return given, "space"
    try:
        return load_space_config(given), f"space ({given})"
    except ConfigError as error:
        faults += [
            Fault(f"space ({given}).{f.key}".replace(".(file)", ""), f.message)
            for f in error.faults
        ]
        return None, "space"


def _check_data(data: DataConfig, task: str) -> list[Fault]:
    if data.folder.is_dir():
        try:
            prepared = load_prepared(data.folder, data.trained_languages)
            load_dictionaries(prepared, task)
        except DataError as error:
            return [Fault("data.folder", str(error))]
        if (task == "translation") != bool(prepared.languages):
            return [Fault("data.folder", f"{data.folder} is no data set for {task}")]
        missing = missing_splits(data.folder, prepared.languages)
        if missing:
            message = f"{data.folder} lacks the binarised side {', '.join(missing)}"
            return [Fault("data.folder", f"{message}: make it with fairseq-preprocess")]
        made_from = read_manifest(data.folder).get("origin") or data.origin
        if data.origin and made_from != data.origin:
            message = f"{data.folder} was made from {made_from}; remove it or name another folder"
            return [Fault("data.folder", message)]
        return []
    if data.text is not None:
        if (task == "translation") != bool(data.text.languages):
            message = "must name source and target for translation, and nothing else"
            return [Fault("data.text.languages", message)]
        try:
            find_split_files(data.text.folder, data.text.languages or ["txt"])
        except DataError as error:
            return [Fault("data.text.folder", str(error))]
    elif data.demo is None:
        message = (
            f"folder {data.folder} does not exist, and neither text nor demo says what to make"
        )
        return [Fault("data.folder", message)]
    return []
