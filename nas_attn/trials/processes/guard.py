"""Become another command that dies with its parent: `python guard.py PARENT_PID COMMAND ...`.

A driver that is killed must take its trainings with it, or they would write into folders that the
next driver continues. The kernel is asked from inside the new process, because a driver with
threads (Ray's workers have many) cannot safely run Python between fork and exec.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have this process killed when the thread of `parent` that started it ends (Linux).

    Raises:
        SystemExit: the parent has ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the driver ended before its training began")


def become(parent: int, command: list[str]) -> None:
    """Replace this process by `command`, to be killed when `parent` ends (Linux)."""
    die_with(parent)
    os.execv(command[0], command)


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
