"""Data and results between machines that share no folder, through Ray's object store."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas_attn.training.worker import TrialJob

LEFT_OUT = ("checkpoint_last.pt", "crash.pt", "training.lock")
"""Not sent back: only a node that goes on with the trial needs them."""


@dataclass(frozen=True)
class DataParcel:
    """A data set as it travels.

    Args:
        folder: where it is on the driver's machine, as commands name it.
        content: a tar archive.
        digest: of the content.
    """

    folder: str
    content: bytes
    digest: str

    @classmethod
    def pack(cls, folder: Path) -> DataParcel:
        """Read a data set."""
        content = _pack(folder, ())
        return cls(str(folder), content, hashlib.sha256(content).hexdigest()[:16])

    def unpack(self, under: Path) -> Path:
        """Write the data set on this node, once; returns its folder."""
        under.mkdir(parents=True, exist_ok=True, mode=0o700)
        target = under / f"data-{self.digest}"
        with (under / f"data-{self.digest}.lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_dir():
                partial = target.with_name(target.name + ".partial")
                _unpack(self.content, partial)
                partial.rename(target)
        return target


class Courier:
    """Takes files of trials back to the run folder; an actor on the driver's machine.

    Args:
        runs: the run folder.
    """

    def __init__(self, runs: Path) -> None:
        self.runs = runs

    def take(self, folder: str, content: bytes) -> None:
        """Write what a node sends into a folder of the run folder."""
        target = Path(folder)
        if not target.is_relative_to(self.runs):
            raise ValueError(f"{folder} is not in the run folder")
        _unpack(content, target)

    def give(self, folder: str) -> bytes | None:
        """What is known of a trial; None if nothing is."""
        source = Path(folder)
        if not source.is_relative_to(self.runs) or not source.is_dir():
            return None
        return _pack(source, ())


class NodeFiles:
    """A trial's files on the node that trains it.

    Args:
        parcel: the data set; None if folders are shared, and then nothing is done.
        courier: actor handle of a `Courier`.
        under: this node's folder for what travels.
    """

    def __init__(self, parcel: DataParcel | None, courier: Any, under: Path | None = None) -> None:
        self._parcel = parcel
        self._courier = courier
        self._under = under or Path(tempfile.gettempdir()) / f"nas-attn-{os.getuid()}"
        self._folders: tuple[str, Path] | None = None

    def localise(self, job: TrialJob) -> TrialJob:
        """The same job with the folders of this node, and what the run folder has of it."""
        parcel = self._parcel
        if parcel is None:
            return job
        import ray

        data = parcel.unpack(self._under)
        folder = self._under / "trials" / hashlib.sha256(job.folder.encode()).hexdigest()[:16]
        known = ray.get(self._courier.give.remote(job.folder))
        if known is not None and not folder.is_dir():
            _unpack(known, folder)
        self._folders = (job.folder, folder)

        def here(text: str) -> str:
            for there, local in ((job.folder, folder), (parcel.folder, data)):
                if text == there or text.startswith(there + "/"):
                    return str(local) + text[len(there) :]
            return text

        runs = tuple(
            replace(
                run,
                folder=here(run.folder),
                command=tuple(here(word) for word in run.command),
                evaluation=tuple(here(word) for word in run.evaluation),
            )
            for run in job.runs
        )
        return replace(
            job,
            folder=str(folder),
            data_folder=str(data),
            runs=runs,
            measure=tuple(here(word) for word in job.measure),
        )

    def send_back(self) -> None:
        """Send the trial's files to the run folder, but for what only this node needs."""
        if self._folders is None:
            return
        import ray

        there, local = self._folders
        ray.get(self._courier.take.remote(there, _pack(local, LEFT_OUT)))


def _pack(folder: Path, without: tuple[str, ...]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name not in without:
                archive.add(path, arcname=str(path.relative_to(folder)))
    return buffer.getvalue()


def _unpack(content: bytes, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")
