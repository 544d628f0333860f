"""Words a second of a study's baseline in training, on a CPU, by two things that make it faster.

    python benchmarks/training_speed.py multi30k_record
    python benchmarks/training_speed.py multi30k_record --updates 100 --rounds 5

The arms are trained in turn: linear layers in bfloat16 (`--bfloat16-linear`) or not, and memory
that is freed kept by the process (as in every trial) or given back to the kernel. Prints medians
over the rounds, time spent in the kernel, the peak of resident memory, and the last loss.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.errors import NasAttnError, SearchError
from nas_attn.fairseq_tools.commands import with_value
from nas_attn.study.loading import load_study
from nas_attn.study.study import Study
from nas_attn.trials.processes.programs import executable_form
from nas_attn.trials.runner import KEEP_MEMORY

FLAG = "--bfloat16-linear"
LINE = re.compile(r"train_inner .* loss=([\d.]+).* wps=([\d.]+)")


@dataclass(frozen=True)
class Turn:
    """What one training came to.

    Args:
        words: Words a second, without the first of the log's intervals.
        seconds: CPU time of the whole command, of it in the kernel.
        memory: Peak of resident memory, in bytes.
        loss: As logged last.
    """

    words: float
    seconds: tuple[float, float]
    memory: int
    loss: str


def train(command: Sequence[str], environment: Mapping[str, str]) -> Turn:
    """Run a training to its end.

    Raises:
        SearchError: It failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        log, absent = Path(folder, "log"), str(Path(folder, "checkpoints"))
        command = executable_form(with_value(command, "--save-dir", absent))
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = status
        text = log.read_text()
    if status:
        raise SearchError(f"the training failed: {text[-1000:]}")
    lines = LINE.findall(text)
    return Turn(
        words=statistics.median(float(words) for _, words in lines[1:]),
        seconds=(used.ru_utime + used.ru_stime, used.ru_stime),
        memory=used.ru_maxrss * 1024,
        loss=lines[-1][0],
    )


def command_of(study: Study, updates: int, in_bfloat16: bool) -> list[str]:
    """The training of the baseline, so many updates of it."""
    (seed, *_) = study.config.training.seeds
    (run,) = study.jobs.confirmation(0, study.baseline, [seed]).runs
    words = [word for word in run.command if word != FLAG]
    lengths = [f"--max-update={updates}", f"--log-interval={max(1, updates // 4)}"]
    flags = [*lengths, "--no-save", "--disable-validation", *[FLAG] * in_bfloat16]
    return [*words, *flags]


def measure(study: Study, updates: int, rounds: int) -> None:
    plain = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
    plain |= {"OMP_NUM_THREADS": str(study.config.resources.cpus), "PYTHONWARNINGS": "ignore"}
    arms = list(itertools.product((False, True), (False, True)))
    turns: dict[tuple[bool, bool], list[Turn]] = {arm: [] for arm in arms}
    for number, arm in itertools.product(range(rounds), arms):
        in_bfloat16, keeps = arm
        environment = plain | (KEEP_MEMORY if keeps else {})
        turns[arm].append(train(command_of(study, updates, in_bfloat16), environment))
        print(f"round {number + 1}, {name_of(arm)}: {turns[arm][-1].words:,.0f}", file=sys.stderr)
    say(turns)


def name_of(arm: tuple[bool, bool]) -> str:
    in_bfloat16, keeps = arm
    return ("bfloat16" if in_bfloat16 else "float32") + (", memory kept" if keeps else "")


def say(turns: Mapping[tuple[bool, bool], Sequence[Turn]]) -> None:
    print("| | words/s | against the first | in the kernel | peak of memory | loss |")
    print("|---|---:|---:|---:|---:|---:|")
    first = statistics.median(turn.words for turn in turns[False, False])
    for arm, of_arm in turns.items():
        words = statistics.median(turn.words for turn in of_arm)
        kernel = statistics.median(turn.seconds[1] / turn.seconds[0] for turn in of_arm)
        memory = max(turn.memory for turn in of_arm) / 2**20
        losses = ", ".join(sorted({turn.loss for turn in of_arm}))
        cells = [f"{words:,.0f}", f"{words / first:.2f}", f"{kernel:.0%}", f"{memory:,.0f} MiB"]
        print("| " + " | ".join([name_of(arm), *cells, losses]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study")
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    study = load_study(options.study, overrides=options.set, runs=options.runs)
    measure(study, options.updates, options.rounds)


if __name__ == "__main__":
    try:
        main()
    except NasAttnError as error:
        sys.exit(str(error))
