"""Try to destroy a record: two kinds of writers, kill -9, torn writes, a full disk.

    python stress/record.py                      # 60 trials, about two minutes
    python stress/record.py --trials 8 --kills 6 --tears 3

A search runs once undisturbed and once among writers that nobody asked for: processes with our own
storage, and with Optuna's own `JournalFileBackend`, as a notebook or optuna-dashboard has it. All
are killed at random times. Now and then one writes a random part of its line and dies with its
locks held; all die at once and random bytes are left at the end of the journal; the disk is full
(a small tmpfs where root can mount one, else a limit of the file's size). A driver that says that
the record is damaged is answered with `nas-attn repair`. At the end every trial must be complete
exactly once, as in the undisturbed search, the fronts must be the same, and all that a writer was
assured is written must be there. The exit status is 0 if all of that holds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from nas_attn.engine import journal, optuna_lock
from nas_attn.engine.repair import repair_journal
from nas_attn.engine.storage import JOURNAL, open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord, front
from nas_attn.errors import SearchError
from nas_attn.trials.job import TrialJob, TrialResult
from nas_attn.trials.processes.guard import die_with
from tests.helpers.fakes import OBJECTIVES, FakeExecutor, make_loop

WRITERS = ("ours", "ours", "optuna", "optuna")
"""Those beside the driver, by the storage that they write with."""
DISK = 32 << 20
STALE_SECONDS = 2.0
"""For this test, a lock of the dead is broken sooner than in 30 s."""
DAMAGED = 3
"""Exit status of a driver that says that the record is damaged."""


class Tear:
    """Decides when a writer dies in the midst of a line.

    Args:
        every: Lines between two such deaths, about; 0 for none.
        log: File in which deaths are counted.
    """

    def __init__(self, every: int, log: Path) -> None:
        self.every, self.log = every, log
        self.generator = random.Random(os.getpid())

    def maybe(self, text: bytes, write: Callable[[bytes], Any]) -> None:
        if self.every and self.generator.randrange(self.every) == 0:
            write(text[: self.generator.randrange(1, len(text))])
            with self.log.open("a") as log:
                log.write("torn\n")
            os.kill(os.getpid(), signal.SIGKILL)


class Paced(FakeExecutor):
    """Trains so slowly that it can be disturbed."""

    def _train(self, loop: Any, job: TrialJob) -> TrialResult:
        time.sleep(0.05)
        return super()._train(loop, job)


def search(folder: Path, trials: int, tear: Tear) -> None:
    """A driver, to its end."""
    append = journal._append

    def torn(file: int, text: bytes, end: int) -> None:
        tear.maybe(text, lambda part: os.write(file, part))
        append(file, text, end)

    journal._append = torn
    Paced(workers=1).run(make_loop(folder, trials=trials))


def write_metadata(kind: str, name: str, folder: Path, written: Path, tear: Tear) -> None:
    """Write metadata of the study for ever, and keep a list of what is written."""
    path = folder / JOURNAL
    if kind == "ours":
        storage = open_storage(None, folder)
    else:

        class Torn(JournalFileBackend):
            def append_logs(self, logs: list[dict[str, Any]]) -> None:
                def write(part: bytes) -> None:
                    JournalFileSymlinkLock(str(path), grace_period=3).acquire()
                    with path.open("ab") as file:
                        file.write(part)

                tear.maybe(b'{"op_code":2,"worker_id":"a writer that dies"}' * 3, write)
                super().append_logs(logs)

        lock = JournalFileSymlinkLock(str(path), grace_period=3)
        storage = JournalStorage(Torn(str(path), lock))
    number = len(written.read_text().splitlines()) if written.exists() else 0
    while True:
        storage.set_study_user_attr(0, f"{name} {number}", "x" * 200)
        with written.open("a") as file:
            file.write(f"{name} {number}\n")
        number += 1
        time.sleep(0.04)


def fork(function: Callable[..., None], *arguments: Any) -> int:
    """Run a function in a process of its own, whose imports are done."""
    sys.stdout.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        die_with(parent)
        function(*arguments)
        status = 0
    except SearchError as error:
        print(f"{os.getpid()}: {error}", flush=True)
        status = DAMAGED
    except (OSError, ValueError) as error:  # Optuna's own backend on a full disk, or on damage
        print(f"{os.getpid()}: {error!r}", flush=True)
    finally:
        os._exit(status)


class DisturbedSearch:
    """The disturbed search, and the other writers of its record."""

    def __init__(self, options: argparse.Namespace, folder: Path, record: Path) -> None:
        self.options, self.folder, self.record = options, folder, record
        self.generator = random.Random(options.seed)
        self.has_disk = os.path.ismount(record)
        self.counts: Counter[str] = Counter()
        self.driver = 0
        self.writers: dict[str, int] = {}
        self.deaths = folder / "deaths"

    def run(self) -> None:
        """Disturb the search until it is over."""
        began = time.monotonic()
        next_fault = began + 1.0
        self.start()
        while not self.is_done():
            if time.monotonic() - began > self.options.limit:
                sys.exit(f"not over after {self.options.limit:.0f} s")
            time.sleep(0.02)
            self.start()
            if time.monotonic() > next_fault:
                self.disturb()
                next_fault = time.monotonic() + self.options.every * self.generator.uniform(
                    0.5, 1.5
                )
        self.kill_writers()

    def start(self) -> None:
        """Start what is not there."""
        left = self.options.tears - self.torn
        tear = Tear(self.options.tear_every if left > 0 else 0, self.deaths)
        if not self.driver:
            self.driver = fork(search, self.record, self.options.trials, tear)
            self.counts["drivers"] += 1
        if not (self.record / JOURNAL).is_file() or not (self.record / JOURNAL).stat().st_size:
            return
        for index, kind in enumerate(WRITERS):
            name = f"{kind}-{index}"
            if name not in self.writers:
                written = self.folder / f"{name}.written"
                self.writers[name] = fork(write_metadata, kind, name, self.record, written, tear)
                self.counts["writers"] += 1

    def is_done(self) -> bool:
        """Whether the search is over; what has died is taken note of."""
        for name, pid in list(self.writers.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self.writers[name]
        pid, status = os.waitpid(self.driver, os.WNOHANG) if self.driver else (0, 0)
        if not pid:
            return False
        self.driver = 0
        code = os.waitstatus_to_exitcode(status)
        if code == DAMAGED:
            self.repair()
        return code == 0

    def disturb(self) -> None:
        """The next fault, if there are any left."""
        left = {
            "kills": self.options.kills - self.counts["kills"],
            "full disks": self.options.full - self.counts["full disks"],
            "power failures": self.options.power - self.counts["power failures"],
        }
        faults = [name for name, count in left.items() for _ in range(max(0, count))]
        if not faults:
            return
        fault = self.generator.choice(faults)
        self.counts[fault] += 1
        if fault == "kills":
            # The driver as often as all others together.
            others = list(self.writers.values()) or [self.driver]
            os.kill(self.generator.choice([self.driver, self.generator.choice(others)]),
                    signal.SIGKILL)  # fmt: skip
        elif fault == "full disks":
            self.fill_disk()
        else:
            self.fail_power()

    def fill_disk(self) -> None:
        """Let there be no room for a while."""
        seconds = self.generator.uniform(0.5, 1.5)
        if self.has_disk:
            filler = self.record / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"\0" * 4000)
            time.sleep(seconds)
            filler.unlink()
            return
        size = (self.record / JOURNAL).stat().st_size + self.generator.randrange(500)
        self.limit_files(size)
        time.sleep(seconds)
        self.limit_files(resource.RLIM_INFINITY)

    def limit_files(self, size: int) -> None:
        for pid in (self.driver, *self.writers.values()):
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def fail_power(self) -> None:
        """Everything dies at once, and the end of the journal is damaged."""
        self.kill_writers()
        os.kill(self.driver, signal.SIGKILL)
        os.waitpid(self.driver, 0)
        self.driver = 0
        path = self.record / JOURNAL
        line = path.read_bytes().splitlines(keepends=True)[-1]
        damage = self.generator.choice(
            [
                line[: self.generator.randrange(1, len(line))],
                self.generator.randbytes(self.generator.randrange(1, 300)),
                b"\0" * 200 + b"\n",
                b"\0" * 200,
            ]
        )
        with path.open("ab") as file:
            file.write(damage)
        if self.generator.random() < 0.5:
            # Optuna's writer comes first, and writes behind the damage.
            lock = JournalFileSymlinkLock(str(path), grace_period=3)
            log = {"op_code": 2, "worker_id": "x", "study_id": 0, "user_attr": {"first": 1}}
            JournalFileBackend(str(path), lock).append_logs([log, log])

    def repair(self) -> None:
        """What `nas-attn repair` does."""
        self.kill_writers()
        directions = [direction.value for direction in OBJECTIVES.directions]
        done = repair_journal(self.record / JOURNAL, "fake", directions, grace_seconds=0.0)
        self.counts["repairs"] += 1
        self.counts["dropped lines"] += len(done.dropped)
        if done.backup is not None:
            done.backup.unlink()  # the disk is small
        if done.placeholders:
            print(f"FAULT trials were lost: {done.placeholders}")
            self.counts["faults"] += 1

    def kill_writers(self) -> None:
        for pid in self.writers.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.writers.clear()

    @property
    def torn(self) -> int:
        """Writers that died in the midst of a line."""
        return len(self.deaths.read_text().splitlines()) if self.deaths.exists() else 0


def trials_of(folder: Path) -> list[TrialRecord]:
    return list(TrialStore("fake", open_storage(None, folder), OBJECTIVES).trials())


def faults_of(disturbed: DisturbedSearch, whole: Path) -> list[str]:
    """What was lost, done twice, or came out otherwise."""
    faults = []
    left, right = trials_of(whole), trials_of(disturbed.record)
    if len(left) != len(right):
        faults.append(f"{len(left)} trials undisturbed, but {len(right)} under faults")
    for one, other in zip(left, right, strict=False):
        if (one.plan, one.losses, one.state, one.curve) != (
            other.plan, other.losses, other.state, other.curve
        ):  # fmt: skip
            faults.append(f"trial {one.number}: {one.losses} {one.plan}, but under faults "
                          f"{other.state.name} {other.losses} {other.plan}")  # fmt: skip
    if [(t.cost, t.loss) for t in front(left)] != [(t.cost, t.loss) for t in front(right)]:
        faults.append("the fronts differ")
    metadata = TrialStore("fake", open_storage(None, disturbed.record), OBJECTIVES).metadata()
    for written in disturbed.folder.glob("*.written"):
        names = written.read_text().splitlines()
        disturbed.counts["entries of metadata"] += len(names)
        lost = [name for name in names if name not in metadata]
        if lost:
            faults.append(f"{len(lost)} entries of metadata were lost, such as {lost[0]}")
    return faults


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """A small disk of its own where root can mount one, else a folder."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(path)]
    is_mounted = os.getuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--tears", type=int, default=12, help="writers that die amid a line, about")
    parser.add_argument("--tear-every", type=int, default=150, help="lines between them, about")
    parser.add_argument("--power", type=int, default=6, help="times that all die at once")
    parser.add_argument("--full", type=int, default=6, help="times that the disk is full")
    parser.add_argument("--every", type=float, default=0.6, help="seconds between faults, about")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for the whole")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--no-disk", action="store_true", help="limit the file's size instead")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna_lock.STALE_SECONDS = STALE_SECONDS
    folder = Path(tempfile.mkdtemp(prefix="nas-attn-record-"))
    whole, record = folder / "whole", folder / "record"
    with contextlib.nullcontext() if options.no_disk else disk(record):
        pid = fork(search, whole, options.trials, Tear(0, folder / "none"))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        disturbed = DisturbedSearch(options, folder, record)
        began = time.monotonic()
        disturbed.run()
        seconds = time.monotonic() - began
        faults = faults_of(disturbed, whole)
        trained = sum(trial.is_trained for trial in trials_of(record))
        disturbed.counts["torn lines"] = disturbed.torn
        points = len(front(trials_of(record)))
    print(
        f"seed {options.seed}, {'tmpfs' if disturbed.has_disk else 'limit of size'}: "
        f"{trained} trials complete in {seconds:.0f} s; "
        + ", ".join(f"{count} {name}" for name, count in sorted(disturbed.counts.items()))
    )
    print(f"front: {points} points, {'identical' if not faults else 'see below'}")
    for fault in faults:
        print(f"FAULT {fault}")
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if faults or disturbed.counts["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
