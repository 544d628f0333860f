"""Studies: what a user wants searched, checked whole, and all that is built from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nas_attn.attention.counting import count_choice
from nas_attn.bleu import DEFAULT
from nas_attn.engine.candidates import FixedCandidates, Proposer
from nas_attn.engine.config import ResourcesConfig, SearchConfig
from nas_attn.engine.objectives import PEAK_MEMORY, Objectives
from nas_attn.engine.plan_costs import expected_costs, least_costs
from nas_attn.engine.samplers import StratifiedSampler
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.errors import ConfigError, ConfigIssue
from nas_attn.fairseq_tools.arguments import check_arguments, training_arguments
from nas_attn.fairseq_tools.costs import CostModel
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.models import blank_dictionary, check_model, load_dictionaries
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.space import SearchSpace, Votes
from nas_attn.study.checks import judge
from nas_attn.study.config import StudyConfig
from nas_attn.study.data import most_types, open_data, prepare_data
from nas_attn.study.devices import count_processes
from nas_attn.study.evaluation import evaluation_of
from nas_attn.study.form import StudyForm, form_of
from nas_attn.study.jobs import TrialJobs
from nas_attn.study.recorded import ModelFacts
from nas_attn.study.tree import Overrides
from nas_attn.trials.layout import BEST, START, best_checkpoint


@dataclass(frozen=True, kw_only=True)
class Study(StudyForm):
    """A checked study.

    Args:
        space: Space over the model that is trained.
        types: Types of the dictionary to count with before there is a data set; None to read the
            data set's dictionaries.
    """

    space: SearchSpace
    types: int | None = None

    @classmethod
    def judged(
        cls, form: StudyForm, *, is_read_only: bool = False, needs_data: bool = True
    ) -> Study:
        """A study that is of the right form, checked whole.

        Args:
            form: What its file says.
            is_read_only: As for `from_config`.
            needs_data: Whether its data must be there; they need not where only plans count.

        Raises:
            ConfigError: lists everything that is wrong, by key path.
        """
        space = judge(form.config, form.source, is_read_only=is_read_only, needs_data=needs_data)
        said = {field.name: getattr(form, field.name) for field in fields(StudyForm)}
        return cls(**said, space=space)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | StudyConfig,
        *,
        folder: Path | None = None,
        overrides: Overrides = (),
        runs: Path = Path("runs"),
        is_read_only: bool = False,
    ) -> Study:
        """A study without a file, judged as a file is.

        Args:
            config: Sections and values as a file has them, or the configuration.
            folder: Folder that relative paths of the configuration start from; the current one if
                left out. Those of overrides are taken from it too.
            overrides: Values that replace others.
            runs: Folder for run folders.
            is_read_only: Whether nothing is trained, so that flags of fairseq that a study may not
                set (but could, once) are passed over with a warning.

        Raises:
            ConfigError: lists everything that is wrong, by key path.
        """
        form = form_of(config, folder=folder, overrides=overrides, runs=runs)
        return cls.judged(form, is_read_only=is_read_only)

    def changed(
        self, overrides: Overrides = (), *, runs: Path | None = None, is_read_only: bool = False
    ) -> Study:
        """The study with other values, judged again.

        Args:
            overrides: Values that replace others.
            runs: Folder for run folders; the study's own if left out.
            is_read_only: As for `from_config`.

        Raises:
            ConfigError: lists everything that is wrong, by key path.
        """
        form = self.with_values(overrides, runs=runs)
        return Study.judged(form, is_read_only=is_read_only)

    def settled(self, votes: Votes) -> Study:
        """The study with what votes on its trained baseline have decided of its space."""
        return replace(self, space=self.space.settled(votes)) if votes else self

    @property
    def data_folder(self) -> Path:
        """The folder of the data set."""
        return self.config.data.folder.absolute()

    @property
    def search(self) -> SearchConfig:
        """How plans are chosen, and how many."""
        return self.config.search

    @property
    def resources(self) -> ResourcesConfig:
        """What one trial is given."""
        return self.config.resources

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
        return open_data(self.config.data)

    def estimated(self) -> Study | None:
        """The study with a dictionary as large as its data set's can become, to count before that.

        Returns:
            None where the study file does not say how many types there will be.
        """
        types = most_types(self.config.data.text)
        if types is None:
            return None
        has_mask = self.config.training.task == "masked_lm"  # a type of its own
        return replace(self, types=types + has_mask)

    def _dictionaries(self) -> list[Any]:
        if self.types is not None:
            return [blank_dictionary(self.types)]
        return load_dictionaries(self.data_set, self.config.training.task)

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
            self._dictionaries(),
            sentence_length=config.sentence_length,
            with_flops="flops" in {*config.costs, *config.limits},
        )

    def _model_faults(self) -> list[ConfigIssue]:
        """Why the model cannot be built with the data set's dictionaries, if so."""
        training = self.config.training
        dictionaries = self._dictionaries()
        return list(check_model(training_arguments(training), dictionaries, training.arguments))

    def proposer(
        self,
        queue: Sequence[AttentionPlan] = (),
        predicted: Mapping[str, float] | None = None,
    ) -> Proposer:
        """Proposes plans, from an empty history; those of a queue first.

        Args:
            queue: Plans that come first.
            predicted: What single conversions of the baseline do to the loss (see `Proposer`).
        """
        return Proposer(*self._proposer_arguments(), queue, predicted)

    def given_plans(self, plans: Sequence[AttentionPlan]) -> FixedCandidates:
        """Proposes these plans."""
        return FixedCandidates(plans, *self._proposer_arguments())

    def _proposer_arguments(
        self,
    ) -> tuple[SearchSpace, CostModel, Objectives, SearchConfig, AttentionPlan]:
        return self.space, self.costs, self.objectives, self.config.search, self.baseline

    def prepare_data(self, *, workers: int = 1) -> PreparedData:
        """Make the data set if it is not there.

        Raises:
            DataError: the text cannot be read or binarised.
        """
        return prepare_data(self.config.data, workers=workers)

    @cached_property
    def jobs(self) -> TrialJobs:
        """Builds what an executor needs to run trials; needs the data set."""
        return TrialJobs(
            config=self.config,
            folder=self.folder,
            data=self.data_set,
            sizer=self.costs.sizer,
            as_offered=self.space.as_offered,
        )

    def evaluation(self, data: PreparedData, checkpoint: Path) -> list[str]:
        """The command that evaluates a checkpoint on the test set of a data set."""
        return evaluation_of(self.config, data, checkpoint)

    def trained_checkpoint(self, baseline: TrialRecord) -> Path:
        """The checkpoint that conversions start from: of the first seed, before any fine-tuning."""
        run = Path(str(baseline.folder)) / f"seed-{self.config.training.seeds[0]}"
        return run / START / BEST if self._has_warm_start else best_checkpoint(run)

    @property
    def _has_warm_start(self) -> bool:
        return self.config.search.warm_start.is_on

    def axis_range(self) -> tuple[float, float]:
        """The least and the most that a plan can come to, on the objectives' axis."""
        return self._range(self.objectives.primary_cost)

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
                message += self.estimate_text
                faults.append(ConfigIssue(f"objectives.limits.{name}", message))
        if faults:
            raise ConfigError(f"the study {self.config.name}", faults)

    @property
    def estimate_text(self) -> str:
        """What a count hangs on before there is a data set; empty after that."""
        text = self.config.data.text
        if self.types is None or text is None:
            return ""
        return f", estimated from data.text.vocab_size {text.vocab_size:,}"

    def check_flags(self) -> None:
        """See that all flags may be set, which a study that is loaded to be read is not asked.

        Raises:
            ConfigError: some may not; names them.
        """
        faults = check_arguments(self.config.training)
        if faults:
            located = [ConfigIssue(f"training.{fault.key}", fault.message) for fault in faults]
            raise ConfigError(f"the study {self.config.name}", located)

    def _range(self, cost: str) -> tuple[float, float]:
        low = StratifiedSampler(
            self.space, lambda plan: least_costs(self.costs, plan)[cost], seed=0
        ).low
        high = StratifiedSampler(
            self.space, lambda plan: expected_costs(self.costs, plan)[0][cost], seed=0
        ).high
        return low, high

    def facts(self) -> ModelFacts:
        """What reports say of the model; where there are warm starts it needs the data set."""
        shapes = dict(self.space.shapes)
        sizes = {
            site: {str(choice): count_choice(choice, shapes[site]).parameters}
            for site, (choice,) in self.baseline
        }
        for _, site, choice in self.space.choices():
            sizes[site][str(choice)] = count_choice(choice, shapes[site]).parameters
        tuning = self.jobs.tuning_updates if self._has_warm_start else None
        return ModelFacts(shapes=shapes, module_parameters=sizes, tuning_updates=tuning)

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
        # Records keep the metric under the name that it had first.
        kept["objectives"] = {"loss": objectives["metric"], "costs": objectives["costs"]}
        if objectives["metric"] == "bleu" and objectives["bleu_tokenizer"] != DEFAULT:
            kept["objectives"]["bleu_tokenizer"] = objectives["bleu_tokenizer"]
        if "flops" in objectives["costs"]:
            kept["objectives"]["sentence_length"] = objectives["sentence_length"]
        if config["replay"] is not None:
            kept["replay"] = config["replay"]
        else:
            # As many batches make an update.
            gpus = self.config.resources.gpus
            kept["resources"] = {"gpus": count_processes(gpus)}
            if PEAK_MEMORY in objectives["costs"]:
                kept["resources"]["device"] = "gpu" if gpus > 0 else "cpu"
        if self._has_warm_start:
            kept["warm_start"] = config["search"]["warm_start"]
            del kept["warm_start"]["rank_agreement"]
            for name, off in (("ladder", False), ("distil", False), ("teacher", "none")):
                if kept["warm_start"][name] == off:
                    del kept["warm_start"][name]  # records of old do not hold it
        # As JSON gives it back: with lists for tuples, so that it equals what a storage returns.
        kept["space"] = self.space.config.model_dump(mode="json")
        del kept["space"]["description"]
        settings: dict[str, Any] = json.loads(json.dumps(kept))
        return settings

    def continued(self, proposing: Mapping[str, Any] | None) -> Study:
        """The study, with scores that it leaves out as the record of its search has them.

        Args:
            proposing: What proposals on record hang on; None without a record.
        """
        if proposing is None or self.config.search.scores is not None:
            return self
        kept = {"scores": proposing.get("search.scores", "measured")}
        search = self.config.search.model_copy(update=kept)
        return replace(self, config=self.config.model_copy(update={"search": search}))

    def proposing(self) -> dict[str, Any]:
        """What proposals hang on besides `settings`, by key path.

        With other values, trials on record could not be derived again.
        """
        search, objectives = self.config.search, self.config.objectives
        names = ["seed", "sampler", "strategy", "enqueue"]
        names += ["startup_trials"] if search.sampler != "stratified_random" else []
        proposing = {f"search.{name}": getattr(search, name) for name in names}
        scores = search.scores_where(distils=search.warm_start.distil)
        if search.predicts and scores != "measured":  # records of old do not hold it
            proposing["search.scores"] = scores
        proposing["objectives.limits"] = dict(sorted(objectives.limits.items()))
        if "flops" in objectives.limits:
            proposing["objectives.sentence_length"] = objectives.sentence_length
        return proposing
