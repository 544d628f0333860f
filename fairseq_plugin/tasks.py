"""fairseq's tasks with two additions: each validation is appended to a report file, and checkpoints
keep what `--patience` counts.

The file is named by the environment variable `NAS_ATTN_REPORT`; without it nothing is written (see
`nas_attn.validation_log`).
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch.distributed as dist
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from fairseq_plugin.memory import PeakMemory
from nas_attn.attention.counting import count_model
from nas_attn.attention.pruning import Phase, PrunableAttention
from nas_attn.validation_log import REPORT_VARIABLE, report_validation

PATIENCE = ("best", "num_runs")
"""The best validation, and how many have not been better since."""


class OutOfMemoryError(RuntimeError):
    """The memory of a GPU was not enough for a batch; the message is none that fairseq knows."""


class ReportingTask:
    """Mix-in for a fairseq task: report every validation of the first process.

    It also keeps in checkpoints how long no validation was better, which fairseq forgets when a
    training is resumed: it would stop later than an unbroken one.
    """

    _epoch: int | None = None
    _memory: PeakMemory | None = None

    @property
    def memory(self) -> PeakMemory:
        """What this process has taken so far."""
        if self._memory is None:
            self._memory = PeakMemory()
        return self._memory

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)  # type: ignore[misc]
        self.memory.look()

    def train_step(self, *arguments: Any, **options: Any) -> Any:
        """Train on a batch; where a report is asked for, none is left out for lack of memory.

        fairseq would leave it out and train on. Which batches that hits hangs on what else is on
        the GPU, so the result would not be that of the command.

        Raises:
            OutOfMemoryError: the memory was not enough.
        """
        try:
            return super().train_step(*arguments, **options)  # type: ignore[misc]
        except RuntimeError as error:
            if REPORT_VARIABLE not in os.environ or "out of memory" not in str(error):
                raise
            raise OutOfMemoryError(
                "the memory was not enough for a batch, which fairseq would leave out"
            ) from error

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        self._epoch = epoch

    def post_validate(self, model: Any, stats: dict[str, Any], agg: Any) -> None:
        memory = self.memory.of_largest_process(next(model.parameters()).device)
        if dist.is_initialized() and dist.get_rank() != 0:
            return
        # Averages are taken before fairseq rounds them for its log.
        values = {
            name: getattr(agg[name], "avg", smoothed)
            for name, smoothed in agg.get_smoothed_values().items()
        }
        metrics = {name: float(value) for name, value in values.items() if _is_number(value)}
        report_validation(
            int(stats["num_updates"]),
            count_model(model)._asdict(),
            metrics,
            epoch=self._epoch,
            phase=_phase(model),
            memory=memory,
        )

    def get_checkpoint_dict(self) -> dict[str, Any]:
        """What fairseq adds to a checkpoint."""
        kept = {name: getattr(_early_stop(), name, None) for name in PATIENCE}
        return {type(self).__name__: {k: v for k, v in kept.items() if v is not None}}

    def set_checkpoint_dict(self, kept: dict[str, Any]) -> None:
        """What fairseq found in a checkpoint that a training is resumed from."""
        function = _early_stop()
        for name in PATIENCE:
            if name in kept and function is not None:
                setattr(function, name, kept[name])


def _early_stop() -> Any:
    """fairseq-train's own function, which keeps its count on itself."""
    for name in ("__main__", "fairseq_cli.train"):
        function = getattr(sys.modules.get(name), "should_stop_early", None)
        if function is not None:
            return function
    return None


def _phase(model: Any) -> str | None:
    prunable = (module for module in model.modules() if isinstance(module, PrunableAttention))
    phases = {int(module.schedule[0]) for module in prunable if module.is_prunable}
    return Phase(min(phases)).name.lower() if phases else None


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


@register_task("reported_translation", dataclass=TranslationConfig)
class ReportedTranslationTask(ReportingTask, TranslationTask):
    """fairseq's `translation`, reported."""


@register_task("reported_language_modeling", dataclass=LanguageModelingConfig)
class ReportedLanguageModelingTask(ReportingTask, LanguageModelingTask):
    """fairseq's `language_modeling`, reported."""


@register_task("reported_masked_lm", dataclass=MaskedLMConfig)
class ReportedMaskedLMTask(ReportingTask, MaskedLMTask):
    """fairseq's `masked_lm`, reported."""
