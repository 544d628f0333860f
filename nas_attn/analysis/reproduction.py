"""The commands that train a trial again."""

from __future__ import annotations

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
