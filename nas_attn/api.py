"""The Python API: run a search, open a study, predict a front; what the command does, too.

    import nas_attn

    results = nas_attn.search("demo", trials=12, overrides={"search": {"seed": 2}})
    results.front()                        # pandas.DataFrame
    results.plot_front()                   # matplotlib Axes
    results.confirm(seeds=5)
    results.export("small", best_under="90k")

Everything works in a notebook and outside the main thread. No signal handler is set; a
`KeyboardInterrupt` stops trainings in order, and the next call resumes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nas_attn.analysis.trials import Trials
from nas_attn.engine.config import ExecutionConfig
from nas_attn.engine.status import Status, read_status
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.errors import UsageError
from nas_attn.literals import parse_count
from nas_attn.measures import NO_LIMITS, FurtherMetric, Scores
from nas_attn.plan import AttentionPlan
from nas_attn.study.form import RUNS, Runs, StudyForm, StudyLike, find_study, read_study
from nas_attn.study.recorded import open_run_folder
from nas_attn.study.tree import Overrides, execution_overrides
from nas_attn.workflows.defaults import CHECKS, POINTS, SEEDS
from nas_attn.workflows.events import Events
from nas_attn.workflows.records import open_store

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from nas_attn.analysis.comparison import Comparison
    from nas_attn.fairseq_tools.formats import Format
    from nas_attn.study.study import Study
    from nas_attn.workflows.export import Exported
    from nas_attn.workflows.sensitivity import PredictedFront


def search(
    study: StudyLike,
    *,
    trials: int | None = None,
    workers: int | None = None,
    executor: str | None = None,
    address: str | None = None,
    storage: str | None = None,
    report_every: float | None = None,
    overrides: Overrides = (),
    runs: Runs = None,
    events: Events | None = None,
) -> Results:
    """Run a study's search, or resume it, and write its report.

    The multi-head baseline is trained first, then what the study's strategy proposes. What is
    finished never runs again; a search that was stopped goes on where it stopped. Several calls,
    also on several machines that share storage and run folder, share the work.

    Args:
        study: File, name, run folder, dict or config of the study.
        trials: Trials in all; the study says if left out, here and below.
        workers: Trials to run in parallel.
        executor: `local`, `ray` or `simulated`.
        address: Address of a running Ray cluster, such as `auto`; implies `ray`.
        storage: URL of an Optuna storage that several drivers share.
        report_every: Seconds between two reports while the search runs.
        overrides: Values that replace the study's.
        runs: Folder that holds the studies' run folders; `runs` if left out.
        events: Object that is called with the progress; left out, it is logged at level INFO.

    Raises:
        ConfigError: The study is refused; lists everything wrong with it, by key path.
        NasAttnError: The search ended early, or no trial has a result; what is there is reported.
    """
    from nas_attn.workflows.search import search as run_search

    changes = execution_overrides(
        overrides, trials=trials, workers=workers, storage=storage, executor=executor,
        address=address,
    )  # fmt: skip
    session = run_search(
        load(study, changes, runs), address=address, events=events, report_every=report_every
    )
    return Results(
        session.study, session.store, session.study.folder, address=address, events=events
    )


def open_study(
    study: StudyLike,
    *,
    overrides: Overrides = (),
    runs: Runs = None,
    storage: str | None = None,
    address: str | None = None,
    events: Events | None = None,
) -> Results:
    """Open what a study has found so far; its search may be running, here or elsewhere.

    Args:
        study: File, name, run folder, dict or config of the study. A run folder may have been
            moved, and needs no file: its record holds what the file said.
        overrides: Values that replace the study's.
        runs: Folder that holds the studies' run folders; `runs` if left out.
        storage: URL of its Optuna storage; the study says if left out.
        address: Address of a running Ray cluster, for what is trained from here on.
        events: Object that is called with its progress; left out, it is logged at level INFO.

    Raises:
        ConfigError: It is not of the form of a study; lists every fault, by key path. What fairseq
            refuses is said by what needs the model, such as `Results.report`.
        NasAttnError: No search has run.
    """
    if isinstance(study, str | Path) and not overrides and storage is None:
        found = find_study(study, Path(runs or RUNS))
        if not found.is_file():
            folder = found.absolute()
            return Results(None, open_run_folder(folder), folder, address=address, events=events)
    changes = execution_overrides(overrides, storage=storage, address=address)
    form = read_study(study, changes, runs)
    return Results(form, open_store(form), form.folder, address=address, events=events)


def predict_front(
    study: StudyLike,
    *,
    data: str | Path | None = None,
    space: str | None = None,
    cost: str | None = None,
    checks: int = CHECKS,
    points: int = POINTS,
    max_schemes: int | None = None,
    keep_first_layer: bool = False,
    limits: Mapping[str, float] = NO_LIMITS,
    second_cost: str | None = None,
    distil: bool = False,
    scores: Scores | None = None,
    improve: int = 0,
    metric: FurtherMetric | None = None,
    overrides: Overrides = (),
    workers: int | None = None,
    storage: str | None = None,
    address: str | None = None,
    runs: Runs = None,
    events: Events | None = None,
) -> PredictedFront:
    """Predict the front over all plans of a space from one trained baseline.

    Args:
        study: A study, whose baseline is trained if need be, or a checkpoint (`.pt`).
        data: Binarised data set of a checkpoint.
        space: File or shipped name of the space; the study's own if left out, for a checkpoint
            `inherited_voted_per_layer`.
        cost: Name of the cost to minimise; the study's first cost if left out, for a
            checkpoint `attention`.
        checks: Plans that test predictions, half of them random and half predicted.
        points: Plans that are recommended.
        max_schemes: Schemes in a plan at most; any number if None.
        keep_first_layer: Leave the first layer of each site as it is.
        limits: The most that plans may cost, by name, such as {"cache_bytes": 4096}; a study's own
            hold as well.
        second_cost: Name of a cost that counts as much as the first: the plans that no other
            dominates in both and the loss are found, too.
        distil: Train converted modules alone before they are measured, so that every scheme
            inherits; a study's own if its warm starts do.
        scores: `measured`, a pass over the validation set for each single conversion; `gradient`,
            one pass with gradients for all; or `auto`, the same and then a twelfth are measured,
            those that decide what recommended plans lose. Left out: the study's `search.scores`,
            else `auto`, or `measured` with `distil`.
        improve: Further passes, by which better plans are looked for next to recommended ones.
        metric: `bleu`: the recommended plans translate the validation set, as a last check.
        overrides: Values that replace the study's.
        workers: Plans to measure in parallel.
        storage: URL of a study's Optuna storage; the study says if left out.
        address: Address of a running Ray cluster; implies `ray`.
        runs: Folder that holds run folders; `runs` if left out.
        events: Object that is called with the progress; left out, it is logged at level INFO.

    Raises:
        ConfigError: Study or space is refused; lists everything wrong with it.
        NasAttnError: Nothing can inherit, or nothing could be measured.
    """
    from nas_attn.analysis.predictions import PlanConstraints
    from nas_attn.engine.decoding import DECODING
    from nas_attn.workflows import sensitivity

    if checks < 0 or points < 1 or improve < 0:
        raise UsageError("ask for 0 checks or more, 0 passes or more, and 1 point or more")
    constraints = PlanConstraints(max_schemes, keep_first_layer, limits, second_cost)
    if isinstance(study, str | Path) and Path(study).suffix == ".pt":
        trainer = sensitivity.checkpoint_session(
            Path(study),
            sensitivity.data_of_checkpoint(data, overrides),
            space,
            cost="attention" if cost is None or cost == DECODING else cost,
            workers=workers,
            runs=Path(runs or RUNS),
            address=address,
            events=events,
            distil=distil,
        )
    else:
        if data is not None:
            raise UsageError("a study has a data set; --data goes with a checkpoint (.pt)")
        changes = execution_overrides(overrides, workers=workers, storage=storage, address=address)
        trainer = sensitivity.target_session(
            load(study, changes, runs), space, address=address, events=events, distil=distil
        )
    return sensitivity.predict_front(
        trainer,
        space=space,
        cost=cost,
        checks=checks,
        points=points,
        limits=constraints,
        scores=scores,
        improve=improve,
        metric=metric,
    )


class Results:
    """What a study has found; read from its record at every call, also while a search runs.

    Args:
        study: The study, or what its file says; None to read it from the run folder once it is
            needed.
        store: Trials of the study.
        folder: Run folder of the study.
        address: Address of a running Ray cluster, for what is trained from here on.
        events: Object that is called with its progress.
    """

    def __init__(
        self,
        study: StudyForm | None,
        store: TrialStore,
        folder: Path,
        *,
        address: str | None = None,
        events: Events | None = None,
    ) -> None:
        self.store = store
        self.folder = folder
        self._form = study
        self._address = address
        self._events = events

    def __repr__(self) -> str:
        status = self.status()
        return (
            f"<Results of {status.name}: {len(status.finished)} of {status.budget} trials "
            f"finished, {len(status.front)} on the front, in {self.folder}>"
        )

    @cached_property
    def study(self) -> Study:
        """The study, checked whole; of a run folder, as its record holds it.

        Raises:
            ConfigError: The study is refused; lists everything wrong with it, by key path.
            UsageError: The record holds no settings.
        """
        return load(self.form, is_read_only=True)

    @cached_property
    def form(self) -> StudyForm:
        """What the study's file says; of a run folder, as its record holds it.

        Raises:
            UsageError: The record holds no settings.
        """
        if self._form is not None:
            return self._form
        return read_study(self.folder, execution_overrides(address=self._address))

    def front(self) -> pd.DataFrame:
        """The front, what is within its noise, and the baseline: the columns of front.csv."""
        return self.read().front_frame()

    def trials(self) -> pd.DataFrame:
        """All trials: the columns of trials.csv."""
        return self.read().to_frame()

    def plot_front(self, x: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the front, what it dominates, and the baseline.

        Args:
            x: Name of the cost along the horizontal axis; the study's first if left out.
            ax: Axes to draw on; those of a new figure if left out.
        """
        from nas_attn.report.figures import plot_front

        return plot_front(self.read(), x, ax)

    def read(self) -> Trials:
        """The trials as a collection, with the folders in which their files are today."""
        return Trials.of(self.store, self.folder)

    def status(self) -> Status:
        """Counts, what runs, rate and time left."""
        if self._form is None:
            return read_status(self.store, trials=0, grace_seconds=ExecutionConfig().grace_seconds)
        config = self._form.config
        return read_status(
            self.store,
            trials=config.search.trials,
            grace_seconds=config.execution.grace_seconds,
        )

    def report(self, out: str | Path | None = None) -> Path:
        """Write the report: index.html, CSV and JSON tables, figures, summary.md.

        Args:
            out: Folder of the report; the run folder's `report` if left out.

        Returns:
            The page.

        Raises:
            NasAttnError: No trial is complete yet.
        """
        from nas_attn.workflows.reporting import write_study_report

        folder = self.folder / "report" if out is None else Path(out)
        return write_study_report(self.form, self.store, folder)

    def confirm(
        self,
        seeds: int = SEEDS,
        *,
        trials: Sequence[int] = (),
        plans: Sequence[AttentionPlan] = (),
    ) -> pd.DataFrame:
        """Train the front and the baseline again with fresh seeds, and evaluate on the test set.

        Args:
            seeds: Trainings of each point.
            trials: Numbers of trials to confirm.
            plans: Plans to confirm, which the search need not have trained. Without trials and
                plans, the front is confirmed.

        Returns:
            One row for each plan and score: the columns of confirmed.csv.

        Raises:
            ConfigError: A plan cannot be trained.
            NasAttnError: Nothing is complete yet, or it ended early.
        """
        import pandas as pd

        from nas_attn.workflows.confirm import confirm

        done = confirm(
            self.study,
            seeds=seeds,
            trials=trials,
            plans=plans,
            address=self._address,
            events=self._events,
        )
        if done.failure is not None:
            raise done.failure
        return pd.DataFrame(list(done.rows))

    def choose(
        self, *, trial: int | None = None, best_under: float | str | None = None
    ) -> TrialRecord:
        """A trained trial, by its number or by what it may cost.

        Args:
            trial: Number of the trial.
            best_under: Most that its first cost may be, also as text such as `20M`.

        Raises:
            UsageError: There is none; says what there is.
        """
        from nas_attn.workflows.export import best_within, trial_with_number

        if (trial is None) == (best_under is None):
            raise UsageError("say which trial: either --trial N or --best-under AMOUNT")
        if trial is not None:
            return trial_with_number(self.read(), trial)
        budget = best_under
        if isinstance(budget, str):
            budget = parse_count(budget, "--best-under")
        return best_within(self.read(), float(budget or 0))

    def comparison_text(self, trial: TrialRecord) -> str:
        """A trial's loss and first cost against the baseline's, as a sentence."""
        from nas_attn.workflows.export import comparison_text

        return comparison_text(trial, self.read())

    def export(
        self,
        out: str | Path,
        *,
        trial: int | None = None,
        best_under: float | str | None = None,
        with_test: bool = True,
        form: Format = "plugin",
        seed: str | int | None = None,
    ) -> Exported:
        """Write a folder with a trained model, self-contained, to use or share.

        Args:
            out: The folder; one that is there must be empty.
            trial: Number of the trial.
            best_under: Instead, the most that its first cost may be, also as text such as `20M`.
            with_test: Put the data set's binarised test split in, to repeat its evaluation.
            form: `plugin` (for fairseq with nas-attn), `fairseq` (without it), `ctranslate2` or
                `safetensors`; all but the first are checked on validation sentences.
            seed: A seed, or `best`; left out, the seed whose loss is nearest the trial's mean.

        Raises:
            UsageError: No such trial is trained, its checkpoint is gone, its plan has no such form,
                or `out` is no empty folder.
            NasAttnError: The export writes other tokens than the model.
        """
        from nas_attn.workflows.export import export_trial
        from nas_attn.workflows.reporting import confirmed_rows
        from nas_attn.workflows.session import keep_study

        keep_study(self.study, self.store)
        return export_trial(
            self.study,
            self.choose(trial=trial, best_under=best_under),
            self.read(),
            Path(out),
            with_test=with_test,
            form=form,
            seed=seed,
            confirmed=confirmed_rows(self.study, self.store),
        )

    def compare(
        self,
        *others: StudyLike | Results,
        out: str | Path | None = None,
        reference: str | None = None,
        runs: Runs = None,
    ) -> Comparison:
        """Compare fronts by their hypervolume; others are measured by this one.

        Args:
            others: Searches, by study, run folder or results.
            out: Folder for compare.html, .csv, .md, .png and .svg; nothing is written if left out.
            reference: Up to where hypervolume counts: `COST,LOSS`, such as `20M,8.5`, or `first`.
            runs: Folder that holds run folders; `runs` if left out.

        Raises:
            UsageError: They cannot be compared; says why.
        """
        from nas_attn.analysis.searches import read_searched
        from nas_attn.workflows.compare import compare_studies, find_search

        searches = [read_searched(self.store, self.folder)]
        for other in others:
            if isinstance(other, str | Path):
                searches.append(find_search(other, Path(runs or RUNS)))
            else:
                found = other if isinstance(other, Results) else open_study(other, runs=runs)
                searches.append(read_searched(found.store, found.folder))
        return compare_studies(searches, None if out is None else Path(out), reference)


def load(
    study: StudyLike,
    overrides: Overrides = (),
    runs: Runs = None,
    *,
    is_read_only: bool = False,
) -> Study:
    """Load a study and check it whole, without starting anything.

    Args:
        study: File, name, run folder, dict or config of the study.
        overrides: Values that replace the study's.
        runs: Folder that holds the studies' run folders; `runs` if left out.
        is_read_only: Nothing is trained, so flags that can no longer be set are passed over with a
            warning.

    Raises:
        ConfigError: The study is refused; lists everything wrong with it, by key path.
    """
    from nas_attn.study.study import Study

    form = read_study(study, overrides, runs)
    return form if isinstance(form, Study) else Study.judged(form, is_read_only=is_read_only)
