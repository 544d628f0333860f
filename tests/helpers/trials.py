"""Trials whose processes are stand-ins for fairseq's commands."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nas_attn.plan import AttentionPlan
from nas_attn.trials.job import SeedRun, TrialJob, TrialResult
from nas_attn.trials.runner import TrialRun

STAND_IN = """
import json, os, subprocess, sys, time
losses, parameters, ending = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with open(os.environ["NAS_ATTN_REPORT"], "a") as report:
    for update, loss in enumerate(losses):
        size = {"total": parameters}
        phase, loss = loss if isinstance(loss, list) else (None, loss)
        line = {"num_updates": update, "metrics": {"loss": loss}, "parameters": size}
        line["epoch"] = 5
        line["phase"] = phase
        report.write(json.dumps(line) + "\\n")
print("working with", os.environ["OMP_NUM_THREADS"], "threads", flush=True)
if ending == "family":
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    print("child", subprocess.Popen([sys.executable, "-c", stubborn]).pid, flush=True)
if ending in ("hang", "family"):
    time.sleep(60)
if ending == "alive":
    for _ in range(25):
        print("still here", flush=True)
        time.sleep(0.1)
if ending == "fail":
    raise ValueError("no such thing")
if ending.startswith("kill"):
    os.kill(os.getpid(), int(ending.removeprefix("kill")))
if ending.startswith("say"):
    sys.exit(ending.removeprefix("say"))
"""
PRINTING = """
import os, sys
path, text = sys.argv[1:3]
assert os.path.basename(path) == "checkpoint_best.pt" and "NAS_ATTN_REPORT" not in os.environ
if text == "fail":
    sys.exit("RuntimeError: no such subset")
print(text)
"""
GENERATED = """\
INFO:fairseq_cli.generate:NOTE: hypothesis and token scores are output in base 2
INFO:fairseq_cli.generate:Translated 1,061 sentences (7,950 tokens) in 0.1s (530.87 sentences/s, \
6918.67 tokens/s)
WARNING:fairseq_cli.generate:If you are using BPE on the target side, the BLEU score is computed \
on BPE tokens, not on proper words.  Use --sacrebleu for standard 13a BLEU tokenization
Generate test with beam=5: BLEU = 12.08 40.7/20.1/10.0/5.0 (BP = 1.000 ratio = 1.773 \
hyp_len = 734 ref_len = 414)
"""
MODELLED = """\
INFO:fairseq_cli.eval_lm:Evaluated 475 tokens in 0.0s (92527.08 tokens/s)
INFO:fairseq_cli.eval_lm:Loss (base 2): 6.3292, Perplexity: 80.40
"""


PRUNED_PLAN = AttentionPlan.parse('{"encoder_self": {"scheme": "grouped_head", "kept_heads": 2}}')
CUTTING = f"""
import sys
from pathlib import Path
prune, best, out, pruned = sys.argv[1:]
assert (prune, Path(best).name, out) == ("prune", "checkpoint_best.pt", "--out")
assert not Path(pruned).exists()
Path(pruned).write_text("smaller")
print('plan: {PRUNED_PLAN.dumps()}')
"""


def stand_in(command: tuple[str, ...]) -> list[str]:
    programs = {"fairseq-train": STAND_IN, "nas-attn": CUTTING}
    return [sys.executable, "-c", programs.get(command[0], PRINTING), *command[1:]]


def make_job(
    folder: Path,
    *runs: tuple[list[Any], str],
    parameters: int = 10,
    evaluation: tuple[str, ...] = (),
    start: tuple[str, ...] = (),
    **more: Any,
) -> TrialJob:
    return TrialJob(
        number=3,
        folder=str(folder),
        metric="loss",
        parameters=10,
        **more,
        runs=tuple(
            SeedRun(
                seed=seed,
                folder=str(folder / f"seed-{seed}"),
                command=("fairseq-train", json.dumps(losses), str(parameters), ending),
                evaluation=evaluation,
                start=start,
            )
            for seed, (losses, ending) in enumerate(runs, start=1)
        ),
    )


def finish(trial: TrialRun, seconds: float = 20.0) -> TrialResult:
    deadline = time.monotonic() + seconds
    while trial.result is None:
        assert time.monotonic() < deadline
        trial.poll()
        time.sleep(0.02)
    return trial.result


def pid_of(trial: TrialRun) -> int:
    assert trial._activity is not None
    return trial._activity.running.pid


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
