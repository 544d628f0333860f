"""Records of studies, opened to be read or written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nas_attn.engine.storage import JOURNAL, open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.errors import NasAttnError
from nas_attn.study.form import StudyForm

if TYPE_CHECKING:
    from nas_attn.study.sensitivity import SensitivityTarget


def open_store(study: StudyForm | SensitivityTarget, *, create: bool = False) -> TrialStore:
    """Open a study's record.

    Raises:
        NasAttnError: No search has run, and `create` is false.
    """
    url = study.execution.storage
    if url is None and not create and not (study.folder / JOURNAL).is_file():
        raise NasAttnError(
            f"no search has run in {study.folder} yet; if the study is kept in another storage, "
            "give --set execution.storage=URL"
        )
    storage = open_storage(url, study.folder)
    return TrialStore(study.name, storage, study.objectives, create=create)
