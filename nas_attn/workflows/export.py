"""Hand out a trained trial: a folder with all that fairseq needs to use it, and how."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_attn.analysis.trials import Trials
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.fairseq_tools.checkpoints import without_training
from nas_attn.fairseq_tools.data import SENTENCEPIECE_MODEL, PreparedData, load_prepared
from nas_attn.fairseq_tools.folders import languages_of, split_files
from nas_attn.fairseq_tools.formats import PLAN, Format, write_model
from nas_attn.fairseq_tools.portable import make_portable, without_paths
from nas_attn.fairseq_tools.prune import load_checkpoint, prune_model
from nas_attn.fairseq_tools.same_tokens import Check
from nas_attn.fairseq_tools.trained import load_trained, trained_from
from nas_attn.plan import AttentionPlan
from nas_attn.report.formatting import cost_words, state_text
from nas_attn.study.study import Study
from nas_attn.trials.layout import BEST, COMMANDS_FILE, best_checkpoint
from nas_attn.workflows.model_card import (
    WITH_DATA,
    Contents,
    card_text,
    checkpoint_card_text,
    folder_bytes,
    size_text,
)
from nas_attn.workflows.model_facts import ChosenSeed, ModelFacts, choose_seed

logger = logging.getLogger(__name__)

README = "README.md"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was exported.

    Args:
        folder: Folder of the export.
        plan: Plan of the exported model; with what pruning left, where it pruned.
        form: Form of the model.
        bytes: Bytes of the model's files.
        test_bytes: Bytes of the data set's test split; 0 if it is not there.
        check: What the check of the form found; None for the form `plugin`.
        facts: How good the model is, and how sure that is.
    """

    folder: Path
    plan: AttentionPlan
    form: Format
    bytes: int
    test_bytes: int
    check: Check | None
    facts: ModelFacts

    def lines(self, typed: Sequence[str] = ()) -> list[str]:
        """What is to be said of it, a line each.

        Args:
            typed: Arguments by which a command finds the study; none where no command does.
        """
        lines = [self.facts.comparison, f"exported: {self.facts.seed_text}"]
        confirmed = self.facts.confirmation_text
        if confirmed is None and typed:
            command = shlex.join(["nas-attn", "confirm", *typed])
            confirmed = f"not confirmed yet: {command} --trial {self.facts.trial.number}"
        lines += [] if confirmed is None else [confirmed]
        lines += [] if self.check is None else [str(self.check)]
        if self.test_bytes:
            lines.append(
                f"the test split of the data set is in it ({self.test_bytes:,} bytes); "
                "--no-test-split leaves it out"
            )
        size, readme = size_text(self.bytes), self.folder / README
        return [*lines, f"written: {self.folder} (model of {size}; its use is in {readme})"]


def trial_with_number(trials: Trials, number: int) -> TrialRecord:
    """The trained trial of a number.

    Raises:
        UsageError: there is no such trial, or it has no training of its own.
    """
    found = next((trial for trial in trials if trial.number == number), None)
    trained = ", ".join(str(trial.number) for trial in trials.trained) or "none yet"
    if found is None:
        raise UsageError(f"there is no trial {number}; trained trials: {trained}")
    if found.duplicate_of is not None:
        first = found.duplicate_of
        raise UsageError(f"trial {number} repeats trial {first}: take --trial {first}")
    if not found.is_trained:
        raise UsageError(
            f"trial {number} has no model ({state_text(found)}); trained trials: {trained}"
        )
    return found


def best_within(trials: Trials, budget: float) -> TrialRecord:
    """The trained trial with the best loss among those whose first cost is within a budget.

    Args:
        trials: Trials of the study.
        budget: The most that it may cost, on the objectives' axis.

    Raises:
        UsageError: none is within; names the smallest.
    """
    trained = [trial for trial in trials.trained if trial.cost is not None]
    if not trained:
        raise UsageError("no trial is trained yet; nas-attn status says how far the search is")
    within = [trial for trial in trained if _cost(trial) <= budget]
    if not within:
        least = min(trained, key=lambda trial: (_cost(trial), trial.point, trial.number))
        axis = cost_words(trials.objectives.primary_cost)
        raise UsageError(
            f"no trained trial is within {budget:,.0f} {axis}: the smallest is trial "
            f"{least.number} with {_cost(least):,}"
        )
    return min(within, key=lambda trial: (trial.point or (), _cost(trial), trial.number))


def comparison_text(trial: TrialRecord, trials: Trials) -> str:
    """A trial's loss and first cost, and how they compare with the baseline's, as a sentence."""
    seed = ChosenSeed(seed=0, place=0, loss=None, how="")  # which the sentence does not name
    return ModelFacts.of(trial, trials, seed).comparison


def export_trial(
    study: Study,
    trial: TrialRecord,
    trials: Trials,
    out: Path,
    *,
    with_test: bool = True,
    form: Format = "plugin",
    seed: str | int | None = None,
    confirmed: Sequence[Mapping[str, Any]] = (),
) -> Exported:
    """Write a folder with a trained trial that can be used, and given away.

    It holds the model of one seed at its best validation, without what training masked, without the
    optimiser's state and without the paths of this machine; the plan; the dictionaries and the
    SentencePiece model of the data set; for fairseq the test split of the data set; and a README
    with the commands. It is made beside `out` and moved there once it is whole and, in any form but
    `plugin`, writes what the model writes on validation sentences.

    Args:
        study: Study of the trial.
        trial: A trained one.
        trials: Trials of the study, for its baseline.
        out: The folder; one that is there must be empty.
        with_test: Whether the binarised test split is exported too, which the command that
            evaluates needs.
        form: Form of the model (see `nas_attn.fairseq_tools.formats`).
        seed: A seed, or `best`; left out, that whose score is nearest the trial's mean.
        confirmed: Rows of `confirmation_rows`, if there was a confirmation.

    Raises:
        UsageError: the study replays curves, the checkpoint or a dictionary is gone, the plan has
            no such form, `out` is no empty folder, or there is no room.
        NasAttnError: the checkpoint or the data set cannot be read, or the export writes other
            tokens than the model.
    """
    if study.config.replay is not None:
        raise UsageError("replayed learning curves leave no model that could be exported")
    _check_free(out)
    seeds, maximise = study.config.training.seeds, trials.objectives.maximise
    chosen = choose_seed(trial, seeds, seed, maximise=maximise)
    facts = ModelFacts.of(trial, trials, chosen, confirmed)
    source = _checkpoint_of(trial, chosen.seed)
    data = study.data_set
    needed = _dictionaries(data, form)
    test: list[Path] = []
    if with_test and form in WITH_DATA:
        test = split_files(data.folder, data.languages, "test")
    state = load_checkpoint(source)
    plan = _stripped(state, cut=bool(trial.pruned) and source.name == BEST)

    def fill(folder: Path) -> tuple[int, Check | None]:
        _check_room(folder.parent, state, [*needed, *test])
        check = write_model(trained_from(state, source), data.folder, folder, form)
        size = folder_bytes(folder, (PLAN,))
        _copy([*needed, *test], folder)
        made = PreparedData(folder=folder, languages=data.languages)
        contents = Contents(data=made, form=form, bytes=size, check=check, has_test=bool(test))
        text = card_text(study, facts, contents)
        (folder / README).write_text(text, encoding="utf-8")
        return size, check

    size, check = _written(out, fill)
    return Exported(
        folder=out,
        plan=plan,
        form=form,
        bytes=size,
        test_bytes=sum(path.stat().st_size for path in test),
        check=check,
        facts=facts,
    )


@dataclass(frozen=True, kw_only=True)
class ExportedCheckpoint:
    """What was exported of a checkpoint.

    Args:
        folder: Folder of the export.
        form: Form of the model.
        plan: Plan of the model.
        bytes: Bytes of the model's files.
        check: What the check of the form found; None for the form `plugin`.
    """

    folder: Path
    form: Format
    plan: AttentionPlan
    bytes: int
    check: Check | None


def export_checkpoint(path: Path, data: Path, out: Path, form: Format) -> ExportedCheckpoint:
    """Write a folder with a checkpoint's model, be it fairseq's own, trained or converted.

    Args:
        path: Checkpoint of fairseq's transformer, transformer_lm or roberta, or of the plugin's.
        data: Its binarised data set; the validation split checks the export.
        out: The folder; one that is there must be empty.
        form: Form of the model (see `nas_attn.fairseq_tools.formats`).

    Raises:
        UsageError: The checkpoint or the data set cannot be read or do not fit, the plan has no
            such form, `out` is no empty folder, or there is no room.
        NasAttnError: The export writes other tokens than the model.
    """
    _check_free(out)
    trained = load_trained(path)
    task = trained.state["cfg"]["task"]
    found = load_prepared(data, languages_of(task))
    needed = _dictionaries(found, form)
    without_training(path, trained.state)
    make_portable(trained.state)

    def fill(folder: Path) -> tuple[int, Check | None]:
        _check_room(folder.parent, trained.state, needed)
        check = write_model(trained, data, folder, form)
        size = folder_bytes(folder, (PLAN,))
        _copy(needed, folder)
        made = PreparedData(folder=folder, languages=found.languages)
        contents = Contents(data=made, form=form, bytes=size, check=check, has_test=False)
        name = str(task["_name"]).removeprefix("reported_")
        text = checkpoint_card_text(name, trained.plan, contents)
        (folder / README).write_text(text, encoding="utf-8")
        return size, check

    size, check = _written(out, fill)
    return ExportedCheckpoint(folder=out, form=form, plan=trained.plan, bytes=size, check=check)


def _written(
    out: Path, fill: Callable[[Path], tuple[int, Check | None]]
) -> tuple[int, Check | None]:
    """Fill a folder beside another, and move it there once it is whole.

    Raises:
        UsageError: It cannot be written.
        NasAttnError: What `fill` raises.
    """
    target = out.resolve()
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        found = fill(partial)
        partial.replace(target)
    except (OSError, NasAttnError) as error:
        if isinstance(error, NasAttnError) and str(partial) not in str(error):
            raise
        why = str(error).replace(str(partial), str(out))
        raise UsageError(f"{out} is not written: {why}; name another with --out") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return found


def _copy(files: Sequence[Path], folder: Path) -> None:
    """Copy files of the data set, without paths of this machine."""
    for path in files:
        if path.name == SENTENCEPIECE_MODEL:
            (folder / path.name).write_bytes(without_paths(path.read_bytes()))
        else:
            shutil.copyfile(path, folder / path.name)


def _check_free(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is no folder; name another with --out")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; remove it or name another folder with --out")


def _checkpoint_of(trial: TrialRecord, seed: int) -> Path:
    folder = Path(str(trial.folder))
    found = best_checkpoint(folder / f"seed-{seed}")
    if not found.is_file():
        raise UsageError(
            f"the checkpoint of trial {trial.number} is gone ({found}); take another trial, or "
            f"train it again with the commands in {folder / COMMANDS_FILE}"
        )
    return found


def _dictionaries(data: PreparedData, form: Format) -> list[Path]:
    """The files of a data set without which nothing can be encoded."""
    names = [f"dict.{language}.txt" for language in data.languages] or ["dict.txt"]
    missing = [name for name in names if not (data.folder / name).is_file()]
    if missing:
        raise UsageError(f"the data set {data.folder} lacks {', '.join(missing)}; restore it")
    if form == "ctranslate2":  # which has vocabularies of its own
        names = []
    if data.sentencepiece_model.is_file():
        names.append(SENTENCEPIECE_MODEL)
    return [data.folder / name for name in names]


def _stripped(state: dict[str, Any], *, cut: bool) -> AttentionPlan:
    """Leave only what a user of the model needs in a checkpoint; returns its plan."""
    arguments = state["cfg"]["model"]
    plan = AttentionPlan.parse(arguments.attention_plan)
    if cut:
        plan, state["model"], _ = prune_model(plan, state["model"])
    arguments.attention_plan = plan.dumps()
    state["last_optimizer_state"] = None
    make_portable(state)
    return plan


def _check_room(place: Path, state: dict[str, Any], files: Sequence[Path]) -> None:
    # Shared embeddings stand in a state several times, and in a file once.
    sizes = {t.data_ptr(): t.numel() * t.element_size() for t in state["model"].values()}
    needed = sum(sizes.values()) + sum(path.stat().st_size for path in files)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UsageError(
            f"no room in {place}: {needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are "
            "free; make room or name another folder with --out"
        )


def _cost(trial: TrialRecord) -> int:
    assert trial.cost is not None  # of every trained trial
    return trial.cost
