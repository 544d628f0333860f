"""All there is to say about this project on a GPU, in ten minutes: as JSON, and as a page.

    python benchmarks/gpu.py                            # all parts, into runs/gpu
    python benchmarks/gpu.py --parts a,c --minutes 4    # two of them, in four minutes
    python benchmarks/gpu.py --parts d --again          # one of them once more
    python benchmarks/gpu.py --dry --out /tmp/dry       # all of them on a CPU, tiny, in two minutes

Parts:

    a  the machine: GPU, driver, versions, attention backends
    b  the tests that need a GPU (pytest -m cuda)
    c  attention by itself: all schemes and implementations, also decoding, against torch's
    d  fairseq-train and fairseq-generate: every scheme against stock fairseq, base size, fp16
    e  a search of twelve trials, four at a time on the one GPU
    f  the front that single conversions of that search's baseline predict

Each part runs in a process of its own for its share of the minutes; what one leaves goes to those
after it. When a part ends its results are in OUT/PART.json, also if it failed or ran out of time,
with the reason. The next call skips the parts that are done for this commit (not with --again) and
tries the others. OUT/gpu.json and OUT/gpu.md hold all parts, and which targets were reached.
Ctrl-C stops the part that runs, and keeps what is done. The exit status is 1 if a part is not done;
tests that fail and targets that are missed are results. Neither a network nor a package registry is
needed; docs/gpu.md says how to set up a bare machine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_page import targets, write_page
from benchmarks.gpu_parts import PARTS, Settings, read_json, run_part, write_json

LEAST_SECONDS = 20.0
"""A part for which less is left is not begun."""
GRACE_SECONDS = 8.0
"""What a part may take, at the end of its time, to put away what it has."""


@dataclass(frozen=True)
class Ended:
    """How the process of a part has ended."""

    state: str
    reason: str = ""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="letters with commas between (all of them)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu"), help="folder of the results (%(default)s)"
    )
    parser.add_argument(
        "--work",
        type=Path,
        help="folder of data sets, checkpoints and logs, gigabytes of them (OUT/work)",
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="for all parts of this call (%(default)g)"
    )
    parser.add_argument("--again", action="store_true", help="also parts that are done")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, on the CPU, to try it out")
    parser.add_argument(
        "--commit",
        default=os.environ.get("NAS_ATTN_COMMIT"),
        help="of this checkout, where there is no .git ($NAS_ATTN_COMMIT)",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.parts = [part for part in options.parts.split(",") if part]
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown or not options.parts:
        parser.error(f"--parts: there is no part {', '.join(unknown)}; take of {', '.join(PARTS)}")
    if options.minutes <= 0:
        parser.error("--minutes: must be above 0")
    options.out = options.out.absolute()
    options.work = (options.work or options.out / "work").absolute()
    options.commit = options.commit or commit_of(ROOT)
    return options


def commit_of(folder: Path) -> str:
    """The commit that is checked out, and a digest of changes if there are any."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        if not git("status", "--porcelain"):
            return head
        digest = hashlib.sha256(git("diff", "--binary", "HEAD").encode())
        for name in filter(
            None, git("ls-files", "--others", "--exclude-standard", "-z").split("\0")
        ):
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
        return f"{head} and changes {digest.hexdigest()[:12]}"
    except (OSError, UnicodeError, subprocess.CalledProcessError):
        return "unknown"


def is_done(options: argparse.Namespace, part: str) -> bool:
    """Whether an earlier call has ended the part for this commit, at these sizes."""
    if options.commit == "unknown":
        return False
    found = read_json(options.out / f"{part}.json")
    return (found.get("state"), found.get("commit"), found.get("dry")) == (
        "done",
        options.commit,
        options.dry,
    )


def shares(parts: list[str], seconds: float) -> float:
    """Seconds of the first part, by the parts' weights."""
    weights = [PARTS[part].weight for part in parts]
    return seconds * weights[0] / sum(weights)


def run_all(options: argparse.Namespace) -> None:
    """Run the parts one after another; each is written as it ends."""
    deadline = time.monotonic() + 60 * options.minutes
    parts = [part for part in options.parts if options.again or not is_done(options, part)]
    for part in options.parts:
        if part not in parts:
            print(f"{part}  {PARTS[part].title}: done before", flush=True)
    for place, part in enumerate(parts):
        seconds = shares(parts[place:], deadline - time.monotonic())
        print(f"{part}  {PARTS[part].title}: at most {max(0, seconds):.0f} s", flush=True)
        began, date = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
        data_file = options.work / f"{part}.data.json"
        data_file.unlink(missing_ok=True)
        interrupted = False
        try:
            ended = (
                run_process(options, part, seconds)
                if seconds >= LEAST_SECONDS
                else Ended("out of time", f"nothing was left of {options.minutes:g} minutes")
            )
        except KeyboardInterrupt:
            ended, interrupted = Ended("interrupted"), True
        took = time.monotonic() - began
        about = {"part": part, "title": PARTS[part].title, "date": date, "commit": options.commit}
        about |= {"dry": options.dry, "state": ended.state, "reason": ended.reason}
        about |= {"seconds": round(took, 1), "at_most": round(seconds, 1)}
        write_json(options.out / f"{part}.json", about | {"data": read_json(data_file)})
        reason = f" ({ended.reason.splitlines()[-1]})" if ended.reason else ""
        print(f"{part}  {ended.state} after {took:.0f} s{reason}", flush=True)
        if interrupted:
            raise KeyboardInterrupt


def run_process(options: argparse.Namespace, part: str, seconds: float) -> Ended:
    """Run a part in a process of its own; its warnings and logs go to a file."""
    log = options.work / f"{part}.log"
    command = [sys.executable, __file__, "--child", part]
    command += ["--seconds", f"{seconds - GRACE_SECONDS:.1f}"]
    command += ["--out", str(options.out), "--work", str(options.work), "--commit", options.commit]
    command += ["--dry"] * options.dry
    gpu = "" if options.dry else one_gpu()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": gpu}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, stderr=errors, env=environment, cwd=ROOT, process_group=0
        )
        try:
            status = process.wait(seconds - GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            stop(process)
            return Ended("out of time", f"its share was {seconds:.0f} s")
        except KeyboardInterrupt:
            stop(process)
            raise
    if status == 0:
        return Ended("done")
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return Ended("failed", "\n".join(lines[-15:]) or f"exit status {status}")


def one_gpu() -> str:
    """The first GPU that this process may use."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a part as Ctrl-C does, and after a while kill it and all that it has started."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def gather(options: argparse.Namespace) -> dict[str, Any]:
    """All parts' results, also those of earlier calls."""
    found = {part: read_json(options.out / f"{part}.json") for part in PARTS}
    return {part: result for part, result in found.items() if result}


def main() -> None:
    options = parse()
    if options.child is not None:
        settings = Settings(
            out=options.out,
            work=options.work,
            seconds=options.seconds,
            dry=options.dry,
            commit=options.commit,
        )
        sys.exit(run_part(options.child, settings))
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    status = 0
    try:
        run_all(options)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is not done", flush=True)
        status = 130
    results = gather(options)
    if status == 0 and any(results[part]["state"] != "done" for part in options.parts):
        status = 1
    if results:
        judged = targets(results)
        write_json(
            options.out / "gpu.json",
            {"parts": results, "targets": [target.to_json() for target in judged]},
        )
        write_page(results, judged, options.out / "gpu.md")
        for target in judged:
            print(target)
        print(f"written: {options.out}/gpu.json, {options.out}/gpu.md")
    sys.exit(status)


if __name__ == "__main__":
    main()
