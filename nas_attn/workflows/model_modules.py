"""Converted modules of a model: each made once, perhaps trained alone, and then kept in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from nas_attn.attention import Attention
from nas_attn.conversion import Conversions, RecordedCall
from nas_attn.conversion.convert import convert_from
from nas_attn.conversion.distillation import DistillationData
from nas_attn.conversion.distillation import distil as distil_module
from nas_attn.conversion.felt import distillation_data, metrics_of
from nas_attn.conversion.source import ConversionSource
from nas_attn.fairseq_tools.kept_modules import KeptModules
from nas_attn.plan import AttentionChoice, AttentionPlan


class ModuleMaker:
    """Converts the modules of a model, and trains them alone if that is asked for.

    Args:
        conversions: The model.
        losses: For each batch of calibration data the function that runs it and gives its losses.
        has_slope: Whether these losses have a gradient that says how much errors count; all count
            alike without.
    """

    def __init__(
        self,
        conversions: Conversions,
        losses: Sequence[Callable[[], Tensor]],
        *,
        has_slope: bool,
    ) -> None:
        self.conversions = conversions
        self._losses = losses
        self._has_slope = has_slope
        self._kept: KeptModules | None = None
        self._metrics: dict[str, Tensor] | None = None
        self._source: tuple[str, ConversionSource] | None = None
        self._data: dict[str, DistillationData] = {}
        self._made: dict[tuple[str, AttentionChoice, bool], Attention] = {}

    def keep(self, folder: Path, weights: str) -> None:
        """Keep modules that were trained alone in a folder, and take those that are there.

        Args:
            folder: The folder.
            weights: Digest of the model's weights.
        """
        self._kept = KeptModules(folder, weights)

    def begin(self, *, distil: bool) -> None:
        """Have the model converted by this from here on.

        Raises:
            NasAttnError: The loss has no gradient, or there are too few data to distil.
        """
        if distil and self._metrics is None:
            self.conversions.convert(AttentionPlan.of({}))
            attention = self.conversions.attention
            self._metrics = metrics_of(attention, self._losses) if self._has_slope else {}
        self.conversions.use(partial(self._module, distil=distil))

    def _module(
        self,
        name: str,
        trained: Attention,
        choice: AttentionChoice,
        calls: Sequence[RecordedCall],
        *,
        distil: bool,
    ) -> Attention:
        key = (name, choice, distil)
        if key not in self._made:
            self._made[key] = (self._distilled if distil else self._plain)(
                name, trained, choice, calls
            )
        return self._made[key]

    def _plain(
        self,
        name: str,
        trained: Attention,
        choice: AttentionChoice,
        calls: Sequence[RecordedCall],
    ) -> Attention:
        return convert_from(self._prepared(name, trained, calls), choice, judge=False).module

    def _distilled(
        self,
        name: str,
        trained: Attention,
        choice: AttentionChoice,
        calls: Sequence[RecordedCall],
    ) -> Attention:
        known = None if self._kept is None else self._kept.load(name, choice, trained)
        if known is not None:
            return known.module
        if name not in self._data:
            self._data[name] = distillation_data(calls, (self._metrics or {}).get(name))
        device = next(trained.parameters()).device
        distil = partial(distil_module, data=self._data[name], device=device)
        source = self._prepared(name, trained, calls)
        conversion = convert_from(source, choice, distil=distil)
        if self._kept is not None:
            self._kept.folder.mkdir(parents=True, exist_ok=True)
            self._kept.save(name, choice, conversion)
        return conversion.module

    def _prepared(
        self, name: str, trained: Attention, calls: Sequence[RecordedCall]
    ) -> ConversionSource:
        """What conversions of a module start from: large, so only that of the last is kept."""
        if self._source is None or self._source[0] != name:
            self._source = name, ConversionSource(trained, calls)
        return self._source[1]
