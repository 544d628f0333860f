"""Hand out a trained trial: a folder with all that fairseq needs to use it, and how."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from nas_attn.analysis.trials import Trials
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.fairseq_tools.checkpoints import save_checkpoint
from nas_attn.fairseq_tools.commands import interactive_command, plugin_folder
from nas_attn.fairseq_tools.data import SENTENCEPIECE_MODEL, PreparedData
from nas_attn.fairseq_tools.folders import split_files
from nas_attn.fairseq_tools.portable import make_portable, without_paths
from nas_attn.fairseq_tools.prune import load_checkpoint, prune_model
from nas_attn.plan import AttentionPlan
from nas_attn.report.formatting import cost_text, cost_words, state_text
from nas_attn.report.rendering import markdown_text
from nas_attn.study.study import Study
from nas_attn.trials.layout import BEST, COMMANDS_FILE, best_checkpoint

logger = logging.getLogger(__name__)

CHECKPOINT, PLAN, README = "checkpoint.pt", "plan.json", "README.md"
OWN_DATA = "DATA"
"""Stands in a printed command for a data set that is not in the folder."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was exported.

    Args:
        folder: Folder of the export.
        plan: Plan of the exported model; with what pruning left, where it pruned.
        bytes: Bytes of the checkpoint.
        test_bytes: Bytes of the data set's test split; 0 if it is not there.
    """

    folder: Path
    plan: AttentionPlan
    bytes: int
    test_bytes: int


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
    loss, axis = f"validation {trials.objectives.metric}", trials.objectives.primary_cost
    has = f"{loss} {trial.loss:.4f} with {cost_text(axis, trial.cost)} {cost_words(axis)}"
    baseline = trials.baseline
    if baseline is None:
        return f"{has}; the baseline is not trained, so there is nothing to compare it with"
    if baseline.number == trial.number:
        return f"{has}; it is the multi-head baseline"
    assert trial.loss is not None and baseline.loss is not None and trial.point and baseline.point
    step = trial.point[0] - baseline.point[0]
    verdict = "better" if step < 0 else "worse" if step > 0 else "the same"
    return (
        f"{has}; the baseline has {baseline.loss:.4f} with {_cost(baseline):,}: "
        f"{trial.loss - baseline.loss:+.4f} ({verdict}) for {_change(trial, baseline):+.1%}"
    )


def export_trial(
    study: Study,
    trial: TrialRecord,
    trials: Trials,
    out: Path,
    *,
    with_test: bool = True,
) -> Exported:
    """Write a folder with a trained trial that can be used, and given away.

    It holds the best checkpoint of the first seed without what training masked, without the
    optimiser's state and without the paths of this machine; the plan; the dictionaries and the
    SentencePiece model of the data set; the test split of the data set; and a README with the
    commands. It is made beside `out` and moved there once it is whole.

    Args:
        study: Study of the trial.
        trial: A trained one.
        trials: Trials of the study, for its baseline.
        out: The folder; one that is there must be empty.
        with_test: Whether the binarised test split is exported too, which the command that
            evaluates needs.

    Raises:
        UsageError: the study replays curves, the checkpoint or a dictionary is gone, `out` is no
            empty folder, or there is no room.
        NasAttnError: the checkpoint or the data set cannot be read.
    """
    if study.config.replay is not None:
        raise UsageError("replayed learning curves leave no model that could be exported")
    _check_free(out)
    source = _checkpoint_of(study, trial)
    data = study.data_set
    needed, test = (
        _dictionaries(data),
        split_files(data.folder, data.languages, "test") if with_test else [],
    )
    state = load_checkpoint(source)
    plan = _stripped(state, cut=bool(trial.pruned) and source.name == BEST)
    target = out.resolve()
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(target.parent, state, [*needed, *test])
        partial.mkdir()
        _write_model(partial, state, plan, [*needed, *test])
        made = PreparedData(folder=partial, languages=data.languages)
        text = readme_text(study, trial, trials, made, has_test=bool(test))
        (partial / README).write_text(text, encoding="utf-8")
        size = (partial / CHECKPOINT).stat().st_size
        partial.replace(target)
    except UsageError:
        raise
    except (OSError, NasAttnError) as error:
        why = str(error).replace(str(partial), str(out))
        raise UsageError(f"{out} is not written: {why}; name another with --out") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size_of_test = sum(path.stat().st_size for path in test)
    return Exported(folder=out, plan=plan, bytes=size, test_bytes=size_of_test)


def _write_model(
    folder: Path, state: dict[str, Any], plan: AttentionPlan, files: Sequence[Path]
) -> None:
    """Write the checkpoint, the plan, and files of the data set without paths of this machine."""
    save_checkpoint(state, folder / CHECKPOINT)
    text = json.dumps(plan.to_json(), indent=2) + "\n"
    (folder / PLAN).write_text(text, encoding="utf-8")
    for path in files:
        if path.name == SENTENCEPIECE_MODEL:
            (folder / path.name).write_bytes(without_paths(path.read_bytes()))
        else:
            shutil.copyfile(path, folder / path.name)


def readme_text(
    study: Study,
    trial: TrialRecord,
    trials: Trials,
    exported: PreparedData,
    *,
    has_test: bool,
) -> str:
    """What the folder's README says: which trial this is, and the commands that use it.

    Args:
        study: Study of the trial.
        trial: Trial that is exported.
        trials: Trials of the study, for its baseline.
        exported: The folder, as the data set that the commands name.
        has_test: Whether the test split is in the folder.
    """
    seeds = study.config.training.seeds
    about = comparison_text(trial, trials)
    own = f" Losses are means over {len(seeds)} seeds; the checkpoint is of seed {seeds[0]}"
    own += f", with {trial.losses[0]:.4f}." if trial.losses else "."
    lines = [
        f"# Trial {trial.number} of {markdown_text(study.config.name)}",
        "",
        f"Attention: {markdown_text(trial.text)}",
        "",
        f"{about[0].upper()}{about[1:]}." + (own if len(seeds) > 1 else ""),
        "",
        f"Needs nas-attn {metadata.version('nas-attn')}, which brings fairseq. Run the commands in "
        "this folder.",
    ]
    checkpoint = exported.folder / CHECKPOINT
    if exported.languages:
        source, target = exported.languages
        text = "" if exported.sentencepiece_model.is_file() else ", tokenised as the training data"
        command = _text(interactive_command(exported, checkpoint), exported.folder)
        lines += _command_lines(
            f"Translate {source} to {target}, one sentence a line{text}; lines that begin with D "
            "hold the score and the translation:",
            f"echo 'A sentence to translate.' | {command}",
        )
    command = _text(study.evaluation(exported, checkpoint), exported.folder)
    if has_test:
        lines += _command_lines("Evaluate it on the test split of its data set:", command)
    else:
        command = command.replace(" . ", f" {OWN_DATA} ", 1)
        what = f"the test split of a data set {OWN_DATA}, binarised with the dictionaries here:"
        lines += _command_lines(f"Evaluate it on {what}", command)
    return "\n".join(lines) + "\n"


def _command_lines(words: str, command: str) -> list[str]:
    return ["", markdown_text(words), "", "```", command, "```"]


def _text(command: Sequence[str], folder: Path) -> str:
    """A command as a line for a shell that is in the folder."""
    words = []
    for word in command:
        if word == str(plugin_folder()):
            words.append('"$(nas-attn plugin-dir)"')
        else:
            words.append(shlex.quote(word.replace(str(folder), ".")))
    return " ".join(words)


def _check_free(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is no folder; name another with --out")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; remove it or name another folder with --out")


def _checkpoint_of(study: Study, trial: TrialRecord) -> Path:
    folder = Path(str(trial.folder))
    found = best_checkpoint(folder / f"seed-{study.config.training.seeds[0]}")
    if not found.is_file():
        raise UsageError(
            f"the checkpoint of trial {trial.number} is gone ({found}); take another trial, or "
            f"train it again with the commands in {folder / COMMANDS_FILE}"
        )
    return found


def _dictionaries(data: PreparedData) -> list[Path]:
    """The files of a data set without which nothing can be encoded."""
    names = [f"dict.{language}.txt" for language in data.languages] or ["dict.txt"]
    missing = [name for name in names if not (data.folder / name).is_file()]
    if missing:
        raise UsageError(f"the data set {data.folder} lacks {', '.join(missing)}; restore it")
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


def _change(trial: TrialRecord, baseline: TrialRecord) -> float:
    return _cost(trial) / _cost(baseline) - 1
