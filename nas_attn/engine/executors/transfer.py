"""Data and results between machines that share no folder, through Ray's object store."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas_attn.engine.locks import FileLock
from nas_attn.errors import TrialFileError
from nas_attn.files import write_whole
from nas_attn.private import private_folder
from nas_attn.trials.job import TrialJob
from nas_attn.trials.layout import LOCK_FILE
from nas_attn.validation_log import REPORT_FILE, read_report

LEFT_OUT = ("crash.pt", LOCK_FILE)
"""Not sent back, as nobody needs them elsewhere."""
MOST_LOG_BYTES = 16 * 1024 * 1024
"""Of a longer log only the end travels."""
PARTIAL = (".tmp", ".partial")
"""How names of files end that are being written."""


@dataclass(frozen=True)
class DatasetArchive:
    """A data set as it travels.

    Args:
        folder: Folder of the data set on the driver's machine, as commands name it.
        content: A tar archive.
        digest: Digest of the content.
    """

    folder: str
    content: bytes
    digest: str

    @classmethod
    def pack(cls, folder: Path) -> DatasetArchive:
        """Read a data set."""
        content = _pack(folder, _files(folder))
        return cls(str(folder), content, hashlib.sha256(content).hexdigest()[:16])

    def unpack(self, under: Path) -> Path:
        """Write the data set into a folder of this node, once; returns its own folder."""
        target = private_folder(under) / f"data-{self.digest}"
        with FileLock(under / f"data-{self.digest}.lock", f"the data set {target}"):
            if not target.is_dir():
                partial = target.with_name(target.name + ".partial")
                _unpack(self.content, partial)
                partial.rename(target)
        return target


class FileSync:
    """Takes files of trials back to the run folder; an actor on the driver's machine.

    Args:
        runs: The run folder.
    """

    def __init__(self, runs: Path) -> None:
        self.runs = runs

    def take(self, folder: str, content: bytes) -> None:
        """Write what a node sends into a folder of the run folder, each file at once or not."""
        target = Path(folder)
        if not target.is_relative_to(self.runs):
            raise ValueError(f"{folder} is not in the run folder")
        _unpack(content, target)

    def version(self, path: str) -> tuple[int, int]:
        """What tells a file of the run folder from one that was in its place: time and size."""
        if not Path(path).is_relative_to(self.runs):
            raise ValueError(f"{path} is not in the run folder")
        state = Path(path).stat()
        return state.st_mtime_ns, state.st_size

    def read(self, path: str) -> bytes:
        """A file of the run folder."""
        if not Path(path).is_relative_to(self.runs):
            raise ValueError(f"{path} is not in the run folder")
        return Path(path).read_bytes()

    def give(self, folder: str) -> bytes | None:
        """What is known of a trial; None if nothing is."""
        source = Path(folder)
        if not source.is_relative_to(self.runs) or not source.is_dir():
            return None
        return _pack(source, _files(source))


class NodeWorkspace:
    """A trial's files on the node that trains it.

    Args:
        archive: The data set; None if folders are shared, and then nothing is done.
        sync: Actor handle of a `FileSync`.
        under: This node's folder for what travels.
    """

    def __init__(
        self, archive: DatasetArchive | None, sync: Any, under: Path | None = None
    ) -> None:
        self._archive = archive
        self._sync = sync
        self._under = under or Path(tempfile.gettempdir()) / f"nas-attn-{os.getuid()}"
        self._folders: tuple[str, Path] | None = None
        self._sent: dict[Path, tuple[int, int]] = {}
        self._send_again = 0.0

    def localise(self, job: TrialJob) -> TrialJob:
        """The same job with the folders of this node, and what the run folder has of it."""
        archive = self._archive
        if archive is None:
            return job
        import ray

        data = archive.unpack(self._under)
        folder = self._under / "trials" / hashlib.sha256(job.folder.encode()).hexdigest()[:16]
        known = ray.get(self._sync.give.remote(job.folder))
        if known is not None:
            _keep_further(folder, known)
        folder.mkdir(parents=True, exist_ok=True)
        self._folders, self._sent = (job.folder, folder), {}
        places = [(job.folder, folder), (archive.folder, data)]
        places += [(path, self._fetch(path)) for path in job.needs]

        def here(text: str) -> str:
            for there, local in places:
                if text == there or text.startswith(there + "/"):
                    return str(local) + text[len(there) :]
            return text

        runs = tuple(
            replace(
                run,
                folder=here(run.folder),
                command=tuple(here(word) for word in run.command),
                evaluation=tuple(here(word) for word in run.evaluation),
                test_loss=tuple(here(word) for word in run.test_loss),
                start=tuple(here(word) for word in run.start),
            )
            for run in job.runs
        )
        return replace(
            job,
            folder=str(folder),
            data_folder=str(data),
            runs=runs,
            measure=tuple(here(word) for word in job.measure),
            needs=tuple(here(word) for word in job.needs),
        )

    def _fetch(self, path: str) -> Path:
        """A file of another trial, on this node; it is fetched once, and when it was made anew."""
        import ray

        version = ray.get(self._sync.version.remote(path))
        name = hashlib.sha256(f"{path} {version}".encode()).hexdigest()[:16]
        target = self._under / "needed" / f"{name}{Path(path).suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock"), f"the file {target}"):
            if not target.is_file():
                partial = target.with_suffix(".partial")
                partial.write_bytes(ray.get(self._sync.read.remote(path)))
                partial.rename(target)
        return target

    def send_back(self) -> None:
        """Send files to the run folder if there are new checkpoints, so that another node can go
        on; a tenth of the time at most is spent on it."""
        began = time.monotonic()
        if self._folders is None or began < self._send_again:
            return
        if any(path.suffix == ".pt" for path in self._changed()):
            self._send()
        now = time.monotonic()
        self._send_again = now + 9 * (now - began)

    def hand_over(self) -> None:
        """Send what is left of a trial that is over here, and remove it."""
        if self._folders is None:
            return
        self._send()
        shutil.rmtree(self._folders[1])
        self._folders = None

    def _send(self) -> None:
        import ray

        assert self._folders is not None
        there, local = self._folders
        changed = self._changed()
        ray.get(self._sync.take.remote(there, _pack(local, changed)))
        self._sent |= changed

    def _changed(self) -> dict[Path, tuple[int, int]]:
        """Size and time of the files that are not as they were sent."""
        assert self._folders is not None
        found = _files(self._folders[1])
        return {path: state for path, state in found.items() if self._sent.get(path) != state}


def _keep_further(folder: Path, known: bytes) -> None:
    """Of what a node has of a trial and what the run folder has, keep what has gone further."""
    other = folder.with_name(folder.name + ".known")
    shutil.rmtree(other, ignore_errors=True)
    _unpack(known, other)
    if _count_validations(other) > _count_validations(folder) or not folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        other.rename(folder)
    else:
        shutil.rmtree(other)


def _count_validations(folder: Path) -> int:
    return sum(_count_in(report.parent) for report in folder.rglob(REPORT_FILE))


def _count_in(run: Path) -> int:
    try:
        return len(read_report(run))
    except TrialFileError:  # that ends the trial, if this is what is kept
        return 0


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of the files of a folder that travel."""
    found = {}
    for path in folder.rglob("*"):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # renamed meanwhile
        if path.is_file() and path.name not in LEFT_OUT and path.suffix not in PARTIAL:
            found[path] = (stat.st_size, stat.st_mtime_ns)
    return found


def _pack(folder: Path, paths: Iterable[Path]) -> bytes:
    """Read files into a tar archive, in the order in which they are to be written.

    What says that something is done comes after it, and a report before the checkpoints, since a
    training repeats what is only reported. Read is the other way round, as a training may write
    meanwhile; a checkpoint that it has only begun is left out.
    """

    def order(path: Path) -> tuple[int, Path]:
        return 0 if path.name == REPORT_FILE else 1 if path.suffix == ".pt" else 2, path

    contents = []
    for path in sorted(paths, key=order, reverse=True):
        try:
            with path.open("rb") as file:
                if path.suffix == ".log":
                    file.seek(max(0, file.seek(0, os.SEEK_END) - MOST_LOG_BYTES))
                content = file.read()
        except FileNotFoundError:
            continue
        if path.suffix != ".pt" or zipfile.is_zipfile(io.BytesIO(content)):
            contents.append((path, content))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in reversed(contents):
            entry = tarfile.TarInfo(str(path.relative_to(folder)))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _unpack(content: bytes, folder: Path) -> None:
    """Write the files of an archive; what is there already is replaced, never half."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for entry in archive:
            target = folder / entry.name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{entry.name} is not in {folder}")
            target.parent.mkdir(parents=True, exist_ok=True)
            file = archive.extractfile(entry)
            assert file is not None
            write_whole(target, file.read())
