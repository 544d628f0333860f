"""A study, its record and where its trials run, in one object that workflows share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from nas_attn.analysis.trials import Trials
from nas_attn.engine.candidates import Proposer
from nas_attn.engine.config import SearchConfig, StoppingConfig, WarmStartConfig
from nas_attn.engine.executors.base import Executor
from nas_attn.engine.leases import TrialLeases
from nas_attn.engine.locks import FileLock
from nas_attn.engine.loop import JobBuilder, SearchLoop
from nas_attn.engine.provenance import note_start, proposing_of
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.engine.wording import OF_A_SEARCH, Wording
from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.data import lines_text
from nas_attn.machine import cpu_count, library_versions, machine_text
from nas_attn.plan import AttentionPlan
from nas_attn.study.recorded import keep_model, keep_study_file
from nas_attn.study.same_data import keep_data
from nas_attn.study.sensitivity import SensitivityTarget
from nas_attn.study.settings import keep_settings
from nas_attn.study.study import Study
from nas_attn.workflows.events import Events, LogEvents, Run
from nas_attn.workflows.records import open_store

logger = logging.getLogger(__name__)

QUEUE = "queue"
"""Under this name the record keeps plans that come before the sampler's."""
PREDICTED = "predicted_changes"
"""And under this one what the sampler knows of single conversions of the baseline."""


@dataclass(frozen=True)
class SearchPart:
    """A part of a search, after which a further one may follow.

    Args:
        text: Which one it is, in words; empty if it is all.
        is_last: Whether none follows.
    """

    text: str = ""
    is_last: bool = True


WHOLE = SearchPart()


@dataclass(frozen=True)
class Trainer:
    """Runs trials for a study, or measurements of a trained model.

    Args:
        subject: Study or target that is trained or measured.
        store: Trials of the study.
        address: Address of a running Ray cluster, for the executor `ray`; None starts one here.
        events: Object that is called with the progress.
    """

    subject: Study | SensitivityTarget
    store: TrialStore
    address: str | None
    events: Events

    def run(
        self,
        *,
        proposer: Proposer,
        config: SearchConfig,
        build_job: JobBuilder,
        store: TrialStore | None = None,
        title: str | None = None,
        part: SearchPart = WHOLE,
        wording: Wording = OF_A_SEARCH,
    ) -> SearchLoop:
        """Run trials as one of the study's drivers, to the end of the budget.

        Args:
            proposer: Source of plans.
            config: Budget and stopping rule.
            build_job: Function that makes a trial's job.
            store: Store of the results; the search's own if left out.
            title: Title for people; with one it is no search, and no front is shown.
            part: Part of a search that it is.
            wording: What the log calls a trial.

        Returns:
            The loop, whose `outcome()` raises if the run had to end early.

        Raises:
            KeyboardInterrupt: Its trainings were stopped in order; the next run resumes them.
        """
        store, execution = store or self.store, self.subject.execution
        leases = TrialLeases(
            store,
            self.subject.folder,
            heartbeat_seconds=execution.heartbeat_seconds,
            grace_seconds=execution.grace_seconds,
        )
        try:
            loop = SearchLoop(
                store=store,
                leases=leases,
                proposer=proposer,
                config=config,
                build_job=build_job,
                retries=execution.retries,
                wording=wording,
                on_change=self.events.on_change,
            )
            self._execute(loop, title, part)
            return loop
        finally:
            leases.close()

    def run_plans(
        self,
        plans: Sequence[AttentionPlan],
        *,
        build_job: JobBuilder,
        title: str,
        store: TrialStore | None = None,
        wording: Wording = OF_A_SEARCH,
    ) -> SearchLoop:
        """Train plans whole, as far as the record does not hold them; arguments as for `run`."""
        store = store or self.store
        known = [trial for trial in store.trials() if trial.uses_budget]
        new = set(plans) - {trial.plan for trial in known if trial.state.name != "FAIL"}
        changes = {
            "stopping": StoppingConfig(),
            "warm_start": WarmStartConfig(),
            "trials": len(known) + len(new),
        }
        return self.run(
            store=store,
            proposer=self.subject.given_plans(plans),
            config=self.subject.search.model_copy(update=changes),
            build_job=build_job,
            title=title,
            wording=wording,
        )

    def _execute(self, loop: SearchLoop, title: str | None, part: SearchPart) -> None:
        executor = self._executor()
        loop.frees_machine = executor.frees_machine
        run = Run(
            title=title or self.subject.name,
            objectives=self.subject.objectives,
            workers=executor.workers,
            is_search=title is None,
            part=part.text,
            is_last=part.is_last,
        )
        self.events.on_start(run, loop.snapshot)
        is_over = False
        try:
            executor.run(loop)
            is_over = True
        finally:
            self.events.on_end(loop.snapshot if is_over else None)

    def _executor(self) -> Executor:
        subject = self.subject
        execution, resources = subject.execution, subject.resources
        if execution.executor == "simulated":
            from nas_attn.engine.executors.simulated import SimulatedExecutor

            return SimulatedExecutor(execution.workers)
        if execution.executor == "ray":
            from nas_attn.engine.executors.ray_tune.executor import RayExecutor

            data, runs = subject.data_folder, subject.folder
            return RayExecutor(execution, resources, self.address, data=data, runs=runs)
        from nas_attn.engine.executors.local import LocalExecutor

        return LocalExecutor(execution, resources)


@dataclass(frozen=True)
class Session(Trainer):
    """A study that is worked on."""

    subject: Study

    @classmethod
    def begin(
        cls, study: Study, *, address: str | None = None, events: Events | None = None
    ) -> Session:
        """Open a study to train for it; data set and record are made if they are not there.

        Raises:
            ConfigError: The study was loaded to be read, and has flags that none may set.
            SearchError, UsageError: Settings or data are not those of the trials on record.
        """
        events = events or LogEvents()
        study.check_flags()
        prepare_once(study, events)
        return cls._kept(study, open_store(study, create=True), address, events)

    @classmethod
    def resume(
        cls, study: Study, *, address: str | None = None, events: Events | None = None
    ) -> Session:
        """Open a study that has been searched, to train for it.

        Raises:
            ConfigError: The study was loaded to be read, and has flags that none may set.
            NasAttnError: No search has run.
            SearchError, UsageError: Settings or data are not those of the trials on record.
        """
        study.check_flags()
        return cls._kept(study, open_store(study), address, events or LogEvents())

    @classmethod
    def _kept(cls, study: Study, store: TrialStore, address: str | None, events: Events) -> Session:
        study = study.continued(proposing_of(store))
        keep_study(study, store)
        return cls(study, store, address, events)

    @property
    def study(self) -> Study:
        """What is trained and weighed."""
        return self.subject

    @property
    def queue(self) -> list[AttentionPlan]:
        """Plans that come before the sampler's."""
        return queue_of(self.store)

    def note_start(self) -> None:
        """Write down the versions of the libraries, the machine, and what the model is."""
        note_start(self.store, library_versions(), machine_text())
        keep_model(self.store, self.study.facts())

    def train_baseline(self) -> TrialRecord:
        """The trained baseline; it is trained if it is not there."""
        baseline = self._baseline()
        if baseline is None:
            self.note_start()
            self.run_plans(
                [self.study.baseline],
                build_job=self.study.jobs.search_trial,
                title=f"{self.study.name}, the baseline",
            ).outcome()
            baseline = self._baseline()
        if baseline is None:
            raise NasAttnError("the baseline has no result; nas-attn status says why")
        return baseline

    def _baseline(self) -> TrialRecord | None:
        return Trials.of(self.store, self.study.folder).baseline


def keep_study(study: Study, store: TrialStore) -> None:
    """Write down at the first start with which settings and data a study is searched.

    Raises:
        SearchError: Settings are not those of the trials on record.
        UsageError: The data are not.
    """
    gpus = None if study.config.replay is not None else study.resources.gpus
    keep_settings(store, study.settings(), gpus=gpus)
    keep_data(store, study.data_set)
    keep_study_file(store, study.config)


def queue_of(store: TrialStore) -> list[AttentionPlan]:
    """Plans that were put before the sampler's."""
    return [AttentionPlan.from_json(plan) for plan in store.metadata().get(QUEUE, ())]


def predicted_of(store: TrialStore) -> dict[str, float]:
    """What single conversions of the baseline do to its loss, as the sampler was told."""
    return dict(store.metadata().get(PREDICTED, {}))


def prepare_once(study: Study, events: Events) -> None:
    """Make the data set if it is not there, by one of several drivers."""
    data = study.config.data
    if data.folder.is_dir():
        return
    data.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = data.folder.with_name(data.folder.name + ".lock")
    with FileLock(lock, f"the data set {data.folder}, which another driver makes"):
        if not data.folder.is_dir():
            events.on_message(f"preparing {data.folder} ...")
            made = study.prepare_data(workers=cpu_count())
            events.on_message(f"lines: {lines_text(made.folder)}")


def advise(study: Study) -> None:
    """Say what is odd about a study, though it can be searched."""
    from nas_attn.fairseq_tools.bleu import advice

    said = advice(study.config.objectives.bleu_tokenizer, study.data_set)
    if said:
        logger.warning("%s", said)
