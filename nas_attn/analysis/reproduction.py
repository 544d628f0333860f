"""The commands that train a trial again."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from nas_attn.engine.trial_record import TrialRecord
from nas_attn.fairseq_tools.commands import TENSORBOARD, value_of, with_value
from nas_attn.shell import shell_text
from nas_attn.trials.layout import BEST, PRUNED, START


def reproduction_texts(trial: TrialRecord) -> list[str]:
    """For each seed, the line that trains the trial again and prunes it.

    It has folders of its own, since in those of the trial there is nothing left to do.
    """
    texts = []
    starts = trial.starts or ((),) * len(trial.commands)
    for run, (start, command) in enumerate(zip(starts, trial.commands, strict=True), start=1):
        folder = f"checkpoints/trial-{trial.number}-run-{run}"
        steps = [with_value(command, "--save-dir", folder)]
        if start:
            made = f"{folder}/{START}/{BEST}"
            own = value_of(command, "--finetune-from-model")
            steps[0] = with_value(steps[0], "--finetune-from-model", made)
            if value_of(command, "--teacher") == own:  # the baseline's
                steps[0] = with_value(steps[0], "--teacher", made)
            trains = value_of(start, "--save-dir") is not None
            flag, value = ("--save-dir", f"{folder}/{START}") if trains else ("--out", made)
            steps.insert(0, with_value(start, flag, value))
        steps = [
            step
            if value_of(step, TENSORBOARD) is None
            else with_value(step, TENSORBOARD, f"{folder}/tensorboard")
            for step in steps
        ]
        lines = [shell_text(step, trial.threads) for step in steps]
        if trial.pruned:
            lines.append(f"nas-attn prune {folder}/{BEST} --out {folder}/{PRUNED}")
        texts.append(" && ".join(lines))
    return texts


def reproduction_script(trial: TrialRecord) -> str:
    """The same for people: once for all seeds where lines differ in these alone, with folders of
    this machine named once.

    Args:
        trial: Trial to be trained again.
    """
    texts, looped = reproduction_texts(trial), set()
    seeds = [value_of(command, "--seed") for command in trial.commands]
    for run, (seed, text) in enumerate(zip(seeds, texts, strict=True), start=1):
        own = re.sub(rf"--seed([ =]){re.escape(str(seed))}(?!\S)", r"--seed\1$seed", text)
        folder = f"checkpoints/trial-{trial.number}-"
        looped.add(own.replace(f"{folder}run-{run}", f"{folder}seed-$seed"))
    if len(texts) > 1 and len(looped) == 1:
        words = " ".join(shlex.quote(str(seed)) for seed in seeds)
        return with_names(f"for seed in {words}; do\n  {looped.pop()}\ndone", trial)
    return with_names("\n".join(texts), trial)


def with_names(text: str, trial: TrialRecord) -> str:
    """Lines of a shell whose folders of this machine are variables that stand above them.

    Args:
        text: Lines about a trial, such as those that train it again.
        trial: The trial.
    """
    if not trial.commands:
        return text
    command = trial.commands[0]
    plugin = value_of(command, "--user-dir")
    if plugin is not None:
        text = _named(text, plugin, '"$(nas-attn plugin-dir)"')
    folders = {"RUN": str(Path(trial.folder).parent.parent) if trial.folder else ""}
    if command[0] == "fairseq-train" and len(command) > 1:
        folders["DATA"] = command[1]
    heads = []
    for name, folder in folders.items():
        shorter = _named(text, folder, f'"${name}"') if Path(folder).is_absolute() else text
        if shorter != text:
            heads.append(f"{name}={shlex.quote(folder)}")
            text = shorter
    return "\n".join([*heads, text])


def _named(text: str, path: str, name: str) -> str:
    """A text with another name for a path where it is a word, or where a word begins with it."""
    quoted = shlex.quote(path)
    ending = r"(?=/|\s|$)" if quoted == path else r"(?=\s|$)"
    return re.sub(rf"(?<![^\s=]){re.escape(quoted)}{ending}", lambda _: name, text)
