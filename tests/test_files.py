"""Files are written whole or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nas_attn.files import write_text


def test_several_writers_of_one_file_leave_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    texts = [str(writer) * (1000 * writer + 1) for writer in range(8)]
    with ThreadPoolExecutor(len(texts)) as pool:
        for _ in range(25):
            list(pool.map(lambda text: write_text(path, text), texts))
            assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="folder"):
        write_text(folder, "new")
    assert path.read_text() == "old"
    assert sorted(tmp_path.iterdir()) == [folder, path]
