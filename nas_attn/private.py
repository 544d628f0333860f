"""Folders in a place that all users share, which nobody else may have made or may change."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nas_attn.errors import NasAttnError


def private_folder(path: Path) -> Path:
    """Make a folder for this user alone, or see that the one that is there is one.

    Raises:
        NasAttnError: somebody else made it, or could write into it.
    """
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode):
            raise NasAttnError(_refusal(path, "it is no folder, or a link to one")) from None
        if found.st_uid != os.getuid():
            raise NasAttnError(_refusal(path, "it belongs to another user")) from None
        if found.st_mode & 0o022:
            raise NasAttnError(_refusal(path, "other users may write into it")) from None
        path.chmod(0o700)
    return path


def _refusal(path: Path, reason: str) -> str:
    return (
        f"{path} cannot be trusted with data and models: {reason}; remove it, or name another "
        "folder for temporary files with TMPDIR"
    )
