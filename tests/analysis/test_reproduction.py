"""Commands that train a trial again."""

from __future__ import annotations

from dataclasses import replace

from nas_attn.analysis.reproduction import reproduction_texts
from nas_attn.analysis.trials import Trials


def test_training_again_has_its_own_folder_for_tensorboard(trials: Trials) -> None:
    command = (*trials[0].commands[0], "--tensorboard-logdir", "runs/x/tensorboard")
    (text,) = reproduction_texts(replace(trials[0], commands=(command,)))
    assert "--tensorboard-logdir checkpoints/trial-0-run-1/tensorboard" in text
