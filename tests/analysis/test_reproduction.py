"""Commands that train a trial again."""

from __future__ import annotations

from dataclasses import replace

from nas_attn.analysis.reproduction import reproduction_texts
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
