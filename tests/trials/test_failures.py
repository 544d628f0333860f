"""Kinds of failures: what the kernel, a log and our own errors say."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from nas_attn.errors import NasAttnError, TrialFileError
from nas_attn.trials.failures import (
    FailureKind,
    count_oom_kills,
    failure_after,
    failure_of_error,
    kind_of_error,
    kind_of_log,
)


@pytest.mark.parametrize(
    ("code", "log", "oom_killed", "host_memory"),
    [
        (-9, "", True, True),
        (-9, "", False, False),
        (1, "RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed.", True, True),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", True, False),
        (1, "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried", False, True),
        (1, "OSError: [Errno 12] Cannot allocate memory" + "\nx" * 30, False, True),
        (1, "numpy._core._exceptions._ArrayMemoryError: Unable to allocate", False, True),
    ],
)
def test_whose_memory_ran_out(code: int, log: str, oom_killed: bool, host_memory: bool) -> None:
    failure = failure_after("a training", code, log, oom_killed=oom_killed)
    assert failure.host_memory is host_memory
    assert failure_of_error(MemoryError(), "trial 1").host_memory
    assert not failure_of_error(OSError(errno.ENOSPC, "full"), "trial 1").host_memory


def test_what_would_come_out_the_same_is_not_tried_again() -> None:
    assert [kind for kind in FailureKind if not kind.can_retry] == [
        FailureKind.NOT_FINITE,
        FailureKind.DAMAGED,
        FailureKind.TRAINING,
        FailureKind.INTERNAL,
    ]


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "out_of_memory"),
        ("RuntimeError: CUDA error: out of memory", "out_of_memory"),
        ("torch.AcceleratorError: CUDA error: out of memory", "out_of_memory"),
        ("RuntimeError: CUDA driver error: out of memory", "out_of_memory"),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cu", "out_of_memory"),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "out_of_memory"),
        ("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "out_of_memory"),
        ("RuntimeError: cuDNN: there is not enough memory for the workspace", "out_of_memory"),
        ("ncclUnhandledCudaError: Cuda failure 2 'out of memory'", "out_of_memory"),
        ("fairseq_plugin.tasks.OutOfMemoryError: the memory was not enough", "out_of_memory"),
        ("RuntimeError: CUDA error: device-side assert triggered", "training_error"),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", "training_error"),
        ("RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried", "out_of_memory"),
        ("OSError: [Errno 12] Cannot allocate memory", "out_of_memory"),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate", "out_of_memory"),
        ("OSError: [Errno 28] No space left on device", "disk_full"),
        ("RuntimeError: [enforce fail] . PytorchStreamWriter failed writing file", "disk_full"),
        ("FloatingPointError: Minimum loss scale reached (0.0001). Your loss", "not_finite"),
        ("FloatingPointError: gradients are Nan/Inf", "not_finite"),
        ("FloatingPointError: NaN detected in output of layer", "not_finite"),
        ("FloatingPointError: Fatal error: gradients are inconsistent", "training_error"),
        ("RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed.", "killed"),
        ("torch...ProcessExitedException: process 0 terminated with signal SIGKILL", "killed"),
        ("KeyError: 'loss'", "training_error"),
        (
            "FloatingPointError: gradients are Nan/Inf\n\nDuring handling of the above exception, "
            "another exception occurred:\n\n" + "step\n" * 60 + "StopIteration",
            "not_finite",
        ),
        ("CUDA out of memory\n" + "step\n" * 60 + "KeyError: 'loss'", "training_error"),
    ],
)
def test_logs(log: str, kind: str) -> None:
    assert kind_of_log(log) == kind


def test_what_came_first_is_the_cause() -> None:
    first = "FloatingPointError: gradients are Nan/Inf"
    log = f"{first}\n\nDuring handling of the above exception, another exception occurred:\n\n"
    ended = failure_after("it", 1, log + "step\n" * 60 + "StopIteration", oom_killed=False)
    assert ended.message == f"it ended with status 1: {first}"
    over = log + "2026 | INFO | train | begin training\n" + "step\n" * 60 + "KeyError: 'loss'"
    assert failure_after("it", 1, over, oom_killed=False).kind is FailureKind.TRAINING


def test_a_part_killed_for_memory() -> None:
    log = "process 0 terminated with signal SIGKILL"
    for oom_killed, kind in ((True, FailureKind.OUT_OF_MEMORY), (False, FailureKind.KILLED)):
        assert failure_after("it", 1, log, oom_killed=oom_killed).kind is kind


def test_signals() -> None:
    assert failure_after("it", -11, "", oom_killed=True).message == "it was killed by SIGSEGV"
    assert failure_after("it", -40, "", oom_killed=True).message == "it was killed by signal 40"


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("Traceback (most recent call last):\ntorch.OutOfMemoryError: CUDA", "out_of_memory"),
        ("Traceback (most recent call last):\nKeyError: 'loss'", "training_error"),
        ("terminate called after throwing an instance of\nCUDA out of memory", "out_of_memory"),
        ("terminate called without an active exception", "killed"),
        ("", "killed"),
    ],
)
def test_an_abort_is_told_by_the_log(log: str, kind: str) -> None:
    """Python may abort as it shuts down, after the error that has ended it."""
    failure = failure_after("it", -signal.SIGABRT, log, oom_killed=False)
    assert failure.kind == kind
    assert failure.message == f"it was killed by SIGABRT:\n{log}".rstrip(":\n")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "full"), FailureKind.DISK_FULL),
        (OSError(errno.EDQUOT, "full"), FailureKind.DISK_FULL),
        (OSError(errno.ENOMEM, "fork"), FailureKind.OUT_OF_MEMORY),
        (MemoryError(), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("PytorchStreamWriter failed writing"), FailureKind.DISK_FULL),
        (PermissionError(errno.EACCES, "no"), None),
        (RuntimeError("other"), None),
    ],
)
def test_errors_of_our_own(error: Exception, kind: FailureKind | None) -> None:
    assert kind_of_error(error) is kind


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/user/me\n", "user/me/memory.events"),
        ("0::/host/path\n", "memory.events"),
        ("5:cpu:/\n4:memory:/box\n0::/\n", "memory/box/memory.oom_control"),
    ],
)
def test_counter_of_the_kernel(groups: str, file: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text(groups)
    assert count_oom_kills(own, tmp_path) is None
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("oom 7\noom_kill 3\noom_group_kill 1\n")
    assert count_oom_kills(own, tmp_path) == 3
    assert count_oom_kills(tmp_path / "absent", tmp_path) is None


def test_kinds_of_errors() -> None:
    try:
        raise TrialFileError("it cannot be read") from PermissionError(errno.EACCES, "no")
    except TrialFileError as error:
        assert failure_of_error(error, "here").kind is FailureKind.UNREADABLE
    assert failure_of_error(TrialFileError("odd"), "here").kind is FailureKind.DAMAGED
    assert failure_of_error(NasAttnError("no"), "here").kind is FailureKind.TRAINING
    assert failure_of_error(OSError(errno.ENOSPC, "no"), "here").kind is FailureKind.DISK_FULL
