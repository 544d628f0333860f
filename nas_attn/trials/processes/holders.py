"""Which processes of this machine are in the way: who holds a file open, and who is stopped."""

from __future__ import annotations

from pathlib import Path


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine was stopped, as by Ctrl-Z or kill -STOP."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] in ("T", "t")  # the name before may hold anything


def holders_of(path: Path) -> list[int]:
    """The processes that hold a file open, as far as they may be seen (Linux)."""
    real = path.resolve()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(link.readlink() == real for link in (process / "fd").iterdir()):
                found.append(int(process.name))
        except OSError:
            continue  # ended meanwhile, or another user's
    return sorted(found)


def holders_text(path: Path) -> str:
    """Who holds a file open, in words, with a way out for those that are stopped."""
    pids = holders_of(path)
    if not pids:
        return "a process that cannot be seen from here, perhaps on another machine, holds its lock"
    names = ", ".join(str(pid) for pid in pids)
    text = f"process {names} holds its lock" if len(pids) == 1 else f"processes {names} hold it"
    stopped = [str(pid) for pid in pids if is_stopped(pid)]
    if stopped:
        numbers = " ".join(stopped)
        text += f"; stopped: kill -CONT {numbers} lets it go on, kill -9 {numbers} ends it"
    return text
