"""Speed of fairseq's own commands, with its own Transformer and with every scheme in its place.

Models are of one size and hardly trained, and every translation is made equally long: then speed
depends on the attention, not on what was learnt.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nas_attn.attention import get_scheme
from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.data import load_prepared
from nas_attn.fairseq_tools.run_fairseq import Finished, run_fairseq
from nas_attn.trials.processes.launch import Launcher

logger = logging.getLogger(__name__)

STOCK = "fairseq"

UPDATES, FIRST_UPDATES = 16, 4
"""Of a training, and those at its start that are not counted."""

TRAINING = (
    "--optimizer=adam", "--lr=0.0005", "--criterion=label_smoothed_cross_entropy",
    "--label-smoothing=0.1", "--dropout=0.1", "--seed=1", "--log-format=json", "--log-interval=1",
    "--no-epoch-checkpoints", "--no-save-optimizer-state", "--disable-validation",
)  # fmt: skip


@dataclass
class Speed:
    """What fairseq's commands printed for one contender, a number for each round.

    Args:
        contender: Name of a scheme, or `fairseq` for the stock Transformer.
    """

    contender: str
    words_a_second: list[float] = field(default_factory=list)
    """Of fairseq-train: target tokens, median over updates."""
    update_spreads: list[float] = field(default_factory=list)
    """Interquartile range of the same updates' rates over their median."""
    decoding: list[float] = field(default_factory=list)
    """Sentences a second of fairseq-generate, decoding alone, as it prints them."""
    command: list[float] = field(default_factory=list)
    """Sentences a second of the whole fairseq-generate command, from start to exit."""
    failure: str | None = None
    """Why it was left out from then on, if a command failed and the others went on."""


@dataclass(frozen=True, kw_only=True)
class Commands:
    """How fairseq's commands are run.

    Args:
        arch: fairseq's name of the architecture.
        flags: Further flags of fairseq-train, such as --share-all-embeddings.
        generate_flags: Further flags of fairseq-generate, such as --fp16.
        updates, first_updates: Of a training, and those at its start that are not counted.
        beam: Hypotheses of a sentence.
        length: Tokens of every translation.
        threads: Threads of PyTorch.
        launcher: Starts the processes; each from nothing if left out.
    """

    arch: str = "transformer"
    flags: Sequence[str] = ()
    generate_flags: Sequence[str] = ()
    updates: int = UPDATES
    first_updates: int = FIRST_UPDATES
    beam: int = 5
    length: int = 16
    threads: int = 2
    launcher: Launcher | None = None


def _ignore(speeds: Sequence[Speed]) -> None:
    """Nobody wants to know."""


def time_commands(
    data: Path,
    folder: Path,
    schemes: Sequence[str],
    commands: Commands,
    *,
    rounds: int = 3,
    training_rounds: int = 3,
    seconds: float | None = None,
    keep_going: bool = False,
    on_measured: Callable[[Sequence[Speed]], None] = _ignore,
) -> list[Speed]:
    """Run fairseq-train and fairseq-generate for stock fairseq and every scheme, in turns.

    Args:
        data: Folder of a binarised translation data set; its test set is translated.
        folder: Folder for checkpoints and logs.
        schemes: Names of schemes.
        commands: How the commands are run.
        rounds: Number of times that everything is generated.
        training_rounds: Number of times that everything is trained; at least one, for the
            checkpoint.
        seconds: No round begins that would last beyond so many, as rounds have lasted until then;
            the first always begins. Any number if left out.
        keep_going: Leave a contender out once a command of it has failed, and go on.
        on_measured: Told after every command what there is.

    Raises:
        NasAttnError: a command failed (unless `keep_going`), or there is no such scheme.
    """
    pair = _pair_flags(data, commands.flags)
    speeds = [Speed(contender) for contender in (STOCK, *schemes)]
    for scheme in schemes:
        get_scheme(scheme)
    began, longest = time.perf_counter(), 0.0
    for turn in range(max(1, training_rounds, rounds)):
        turn_began = time.perf_counter()
        if turn and seconds is not None and turn_began - began + longest > seconds:
            break
        for step, wanted in ((_train, max(1, training_rounds)), (_generate, rounds)):
            for speed in speeds if turn < wanted else ():
                if speed.failure is not None:
                    continue
                try:
                    step(speed, data, folder, turn, pair, commands)
                except NasAttnError as error:
                    if not keep_going:
                        raise
                    speed.failure = str(error)
                on_measured(speeds)
        longest = max(longest, time.perf_counter() - turn_began)
    return speeds


def _train(
    speed: Speed,
    data: Path,
    folder: Path,
    turn: int,
    pair: Sequence[str],
    commands: Commands,
) -> None:
    """Train once, and note the rate; the first turn leaves the checkpoint."""
    name = f"{'' if speed.contender == STOCK else f'{speed.contender}_'}{commands.arch}"
    trained = _run(
        "train",
        [
            *[str(data), "--arch", name, *TRAINING, *commands.flags, *pair],
            "--max-update",
            str(commands.updates),
            *["--no-save"] * bool(turn),
            "--save-dir",
            str(folder / speed.contender),
            "--restore-file",
            "none.pt",
        ],
        folder / f"{speed.contender}-train-{turn}.log",
        commands,
    )
    rates = _words_a_second(trained.output)[commands.first_updates :]
    if not rates:
        raise NasAttnError("fairseq-train printed no speed")
    median = statistics.median(rates)
    low, _, high = statistics.quantiles(rates, n=4) if len(rates) > 1 else [median] * 3
    speed.words_a_second.append(median)
    speed.update_spreads.append((high - low) / median)
    logger.info("train %s: %.0f words/s", speed.contender, speed.words_a_second[-1])


def _generate(
    speed: Speed,
    data: Path,
    folder: Path,
    turn: int,
    pair: Sequence[str],
    commands: Commands,
) -> None:
    """Translate once with the checkpoint, and note the rates."""
    checkpoint = folder / speed.contender / "checkpoint_last.pt"
    lengths = ["--max-len-a=0", f"--max-len-b={commands.length}", f"--min-len={commands.length}"]
    decoding = [f"--beam={commands.beam}", "--max-tokens=2000", *lengths, *pair]
    generated = _run(
        "generate",
        [str(data), "--path", str(checkpoint), *decoding, *commands.generate_flags],
        folder / f"{speed.contender}-generate-{turn}.log",
        commands,
    )
    found = re.search(r"Translated ([\d,]+) sentences .*\(([\d.]+) sentences/s", generated.output)
    if found is None:
        raise NasAttnError(f"fairseq-generate with {checkpoint} printed no speed")
    speed.decoding.append(float(found[2]))
    speed.command.append(int(found[1].replace(",", "")) / generated.seconds)
    about = (speed.contender, speed.decoding[-1], speed.command[-1])
    logger.info("generate %s: %.2f sentences/s, whole command %.2f", *about)


def _pair_flags(data: Path, flags: Sequence[str]) -> list[str]:
    """Which languages are translated: what the flags name, or the only pair of the data set."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name in ("-s", "--source-lang"), ("-t", "--target-lang"):
        parser.add_argument(*name, default="")
    given, _ = parser.parse_known_args(list(flags))
    named = [given.source_lang, given.target_lang]
    languages = load_prepared(data, named if all(named) else ()).languages
    if not languages:
        raise NasAttnError(f"{data} is no data set for translation")
    return ["--source-lang", languages[0], "--target-lang", languages[1]]


def ratio(values: Sequence[float], stock: Sequence[float]) -> float:
    """Of the medians."""
    return statistics.median(values) / statistics.median(stock)


def _words_a_second(output: str) -> list[float]:
    """The rate of each update; fairseq prints them as JSON."""
    return [
        float(json.loads(found)["wps"])
        for found in re.findall(r"\| train_inner \| (\{.*\})", output)
    ]


def _run(module: str, arguments: list[str], log: Path, commands: Commands) -> Finished:
    done = run_fairseq(
        module,
        [*arguments, "--required-batch-size-multiple=1"],
        log,
        threads=commands.threads,
        launcher=commands.launcher,
    )
    if done.status != 0:
        raise NasAttnError(f"fairseq-{module} failed with exit status {done.status}: see {log}")
    return done
