"""What a report says besides its trials."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nas_attn.analysis.agreement import Agreement
from nas_attn.analysis.random_band import RandomBand
from nas_attn.analysis.sensitivity import SensitivityFindings
from nas_attn.plan import SiteShape


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """What a report says besides its trials.

    Args:
        name: Name of the study.
        description: Description in the user's words.
        seeds: Trainings of a trial.
        settings: Settings kept with the trials.
        versions: Versions of the libraries, as kept with the study.
        machine: Description of the machine on which the search ran.
        evaluate: Command that evaluates the checkpoint of each trial number on the front.
        confirmed: Rows of `confirmation_rows`; empty if nothing was confirmed.
        fine_tuning: Updates that end every trial where there are warm starts, the fewest and the
            most; None where there are none.
        agreement: Agreement of warm and cold trials, if it was asked for.
        findings: Predictions from single conversions of the baseline, if they were measured.
        shapes: Shapes of the model's sites.
        module_parameters: Parameters of modules by site and choice, as far as they are on record.
        band: What as many random proposals would have reached; None where that is not known.
        troubles: Faults and gaps of the report, in sentences.
        reload_seconds: Seconds after which the page reloads itself, as it will be written again.
        study: Arguments of commands that name the study, such as its file; none if it leaves no
            models.
        reading: The same for commands that train nothing; `study` if left out.
        convert: Arguments of `nas-attn convert` that name the trained baseline and its data; none
            where nothing was predicted.
    """

    name: str
    description: str
    seeds: int
    settings: dict[str, Any]
    versions: dict[str, str]
    machine: str
    evaluate: dict[int, str]
    confirmed: Sequence[Mapping[str, Any]] = ()
    fine_tuning: tuple[int, int] | None = None
    agreement: Agreement | None = None
    findings: SensitivityFindings | None = None
    shapes: Mapping[str, SiteShape] = field(default_factory=dict)
    module_parameters: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    band: RandomBand | None = None
    troubles: Sequence[str] = ()
    reload_seconds: float | None = None
    study: Sequence[str] = ()
    reading: Sequence[str] = ()
    convert: Sequence[str] = ()

    @property
    def fine_tuning_text(self) -> str:
        """How long every trial is fine-tuned, in words; empty where none is."""
        if self.fine_tuning is None:
            return ""
        least, most = self.fine_tuning
        if least == most:
            return f"the same {least:,} updates of fine-tuning"
        return (
            f"{least:,} to {most:,} updates of fine-tuning, the more of them the more of the loss "
            "it was predicted to lose"
        )

    @property
    def distils(self) -> bool:
        """Whether warm trials' converted modules were trained alone first."""
        return bool(self.settings.get("warm_start", {}).get("distil", False))

    @property
    def is_replayed(self) -> bool:
        """Whether trainings were replayed or made up, so that no command can repeat them."""
        return self.settings.get("replay") is not None

    @property
    def export_text(self) -> str:
        """The command that exports a trial, with {trial} for its number; empty without a study."""
        if not self.study:
            return ""
        study = shlex.join(self.reading or self.study)
        return f"nas-attn export {study} --trial {{trial}} --out trial-{{trial}}"
