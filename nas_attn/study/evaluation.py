"""Commands that evaluate what a study has trained; nothing of the model is asked for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nas_attn.engine.trial_record import TrialRecord
from nas_attn.fairseq_tools.commands import evaluation_command
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.shell import shell_text
from nas_attn.study.config import StudyConfig
from nas_attn.study.data import open_data
from nas_attn.trials.layout import best_checkpoint


def evaluation_of(config: StudyConfig, data: PreparedData, checkpoint: Path) -> list[str]:
    """The command that evaluates a checkpoint on the test split of a data set."""
    tokenizer = config.objectives.bleu_tokenizer
    return evaluation_command(config.training, data, checkpoint, "test", tokenizer)


def evaluation_texts(config: StudyConfig, trials: Sequence[TrialRecord]) -> dict[int, str]:
    """For each trained trial, the command that evaluates its first seed on the test set.

    Args:
        config: Configuration of the study.
        trials: Its trials, with the folders in which their files are.

    Raises:
        DataError: the data set is not there.
    """
    data = open_data(config.data)
    texts = {}
    for trial in trials:
        if trial.is_trained and trial.folder is not None:
            run = Path(trial.folder) / f"seed-{config.training.seeds[0]}"
            command = evaluation_of(config, data, best_checkpoint(run))
            texts[trial.number] = shell_text(command, trial.threads)
    return texts
