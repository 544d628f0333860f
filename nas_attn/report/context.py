"""What a report says besides its trials."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nas_attn.analysis.agreement import Agreement
from nas_attn.analysis.sensitivity import SensitivityFindings
from nas_attn.plan import SiteShape


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """What a report says besides its trials.

    Args:
        name: of the study.
        description: in the user's words.
        seeds: trainings of a trial.
        settings: kept with the trials.
        versions: of the libraries, as kept with the study.
        machine: where the search ran.
        evaluate: for each trial number on the front, the command that evaluates its checkpoint.
        confirmed: from `confirmation_rows`; empty if nothing was confirmed.
        fine_tuning: updates that end every trial where there are warm starts; None where not.
        agreement: of warm and cold trials, if it was asked for.
        findings: what single conversions of the baseline predict, if they were measured.
        shapes: of the model's sites.
        troubles: what failed or could not be told, in sentences.
        study: arguments of commands that name the study, such as its file; none if it leaves no
            models.
    """

    name: str
    description: str
    seeds: int
    settings: dict[str, Any]
    versions: dict[str, str]
    machine: str
    evaluate: dict[int, str]
    confirmed: Sequence[Mapping[str, Any]] = ()
    fine_tuning: int | None = None
    agreement: Agreement | None = None
    findings: SensitivityFindings | None = None
    shapes: Mapping[str, SiteShape] = field(default_factory=dict)
    troubles: Sequence[str] = ()
    study: Sequence[str] = ()

    @property
    def export_text(self) -> str:
        """The command that exports a trial, with {trial} for its number; empty without a study."""
        if not self.study:
            return ""
        return f"nas-attn export {shlex.join(self.study)} --trial {{trial}} --out trial-{{trial}}"
