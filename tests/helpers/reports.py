"""What reports of tests say beside their trials."""

from __future__ import annotations

from nas_attn.report import ReportContext

HOSTILE = "<script>alert(1)</script>|`rm`"

VERSIONS = dict.fromkeys(("nas-attn", "torch", "optuna", "fairseq-fixed"), "1.0")


def context(name: str = "fake") -> ReportContext:
    return ReportContext(
        name=name,
        description=HOSTILE,
        seeds=1,
        settings={"name": HOSTILE},
        versions=VERSIONS,
        machine="2 CPUs",
        evaluate={0: "fairseq-generate DATA"},
    )
