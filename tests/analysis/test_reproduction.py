"""Commands that train a trial again."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from nas_attn.analysis.reproduction import reproduction_script, reproduction_texts
from nas_attn.analysis.trials import Trials


def test_training_again_has_its_own_folder_for_tensorboard(trials: Trials) -> None:
    command = (*trials[0].commands[0], "--tensorboard-logdir", "runs/x/tensorboard")
    (text,) = reproduction_texts(replace(trials[0], commands=(command,)))
    assert "--tensorboard-logdir checkpoints/trial-0-run-1/tensorboard" in text


def test_the_baseline_that_taught_itself_is_taught_by_what_is_made_again(trials: Trials) -> None:
    own, other = "runs/0/start/checkpoint_best.pt", "runs/1/start/checkpoint_best.pt"
    tuned = (*trials[0].commands[0], "--finetune-from-model", own, "--teacher")
    start = ("fairseq-train", "DATA", "--save-dir", "runs/0/start")
    texts = []
    for teacher in (own, other):
        again = replace(trials[0], commands=((*tuned, teacher),), starts=(start,))
        texts += reproduction_texts(again)
    assert "--teacher checkpoints/trial-0-run-1/start/checkpoint_best.pt" in texts[0]
    assert f"--teacher {other}" in texts[1]


def test_a_script_names_seeds_and_folders_once_and_does_the_same(
    trials: Trials, tmp_path: Path
) -> None:
    data, run = tmp_path / "my data", tmp_path / "run"
    commands = [
        (
            *("fairseq-train", str(data), "--user-dir", "/old/plugin", "--seed", str(seed)),
            *("--save-dir", str(run / "x"), "--teacher", str(run / "trials/1/best.pt")),
        )
        for seed in (1, 17)
    ]
    trial = replace(
        trials[0], commands=tuple(commands), starts=(), folder=str(run / "trials" / "0")
    )
    script = reproduction_script(trial)
    assert script.count("fairseq-train") == 1 and "for seed in 1 17" in script
    assert script.count(str(tmp_path)) == 2 and "/old/plugin" not in script
    # Both are run with a command that prints what it is told.
    stand_ins = 'fairseq-train() { printf "%s\\n" "$@"; }; nas-attn() { echo /old/plugin; }\n'
    told = [
        subprocess.run(
            ["bash", "-euc", stand_ins + text], capture_output=True, text=True, check=True
        ).stdout
        for text in (script, "\n".join(reproduction_texts(trial)))
    ]
    folder = f"checkpoints/trial-{trial.number}"
    expected = told[1].replace(f"{folder}-run-1", f"{folder}-seed-1")
    assert told[0] == expected.replace(f"{folder}-run-2", f"{folder}-seed-17")
