"""Temporary folders that others could have made."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nas_attn.errors import NasAttnError
from nas_attn.private import private_folder


def test_it_is_ours_alone(tmp_path: Path) -> None:
    for mode in (None, 0o755, 0o700):
        folder = tmp_path / "mine"
        if mode is not None:
            folder.chmod(mode)
        assert stat.S_IMODE(private_folder(folder).stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_what_others_may_write_into_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(NasAttnError, match=r"other users may write into it; remove it, or name"):
        private_folder(tmp_path)


def test_links_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    for name in ("link", "file", "nowhere"):
        with pytest.raises(NasAttnError, match="it is no folder, or a link to one"):
            private_folder(tmp_path / name)


def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(NasAttnError, match="belongs to another user"):
        private_folder(tmp_path)
