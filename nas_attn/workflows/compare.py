"""Compare searches, by name, study file or run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nas_attn.analysis.comparison import Comparison, compare
from nas_attn.analysis.searches import (
    RunSummary,
    parse_reference,
    read_searched,
)
from nas_attn.report.comparison import write_comparison
from nas_attn.study.form import read_form
from nas_attn.study.recorded import is_run_folder, open_run_folder
from nas_attn.study.shipped import shipped_names
from nas_attn.workflows.records import open_store


def find_search(name: str | Path, runs: Path = Path("runs")) -> RunSummary:
    """A search by its run folder, study file or name; by name a run folder comes first."""
    is_file = Path(name).suffix in (".yaml", ".yml")
    for folder in () if is_file else (Path(name), runs / name):
        if is_run_folder(folder):
            return read_searched(open_run_folder(folder), folder)
    if Path(name).is_dir() and str(name) not in shipped_names("studies"):
        open_run_folder(Path(name))  # says what it lacks
    study = read_form(name, runs=runs)
    return read_searched(open_store(study), study.folder)


def compare_studies(
    searches: Sequence[RunSummary], out: Path | None, reference: str | None = None
) -> Comparison:
    """Overlay the fronts of searches and compare their hypervolumes.

    Args:
        searches: Searches, two or more; the first is what others are measured by.
        out: Folder for compare.html, .csv, .md, .png and .svg; nothing is written if None.
        reference: Up to where hypervolume counts: `COST,LOSS` or `first`; by default the cost of
            the first baseline and a loss a little worse than the worst on all fronts.

    Raises:
        UsageError: They cannot be compared; says why.
    """
    given = None if reference is None else parse_reference(reference)
    compared = compare(searches, given)
    if out is not None:
        write_comparison(compared, out)
    return compared
