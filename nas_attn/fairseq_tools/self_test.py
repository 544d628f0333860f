"""Try everything: fairseq's commands on every scheme, on made-up data and tiny models."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nas_attn.attention.registry import SCHEMES
from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.data import prepare, prepare_classification
from nas_attn.fairseq_tools.demo_data import LANGUAGES, make_classification_corpus, make_demo_corpus
from nas_attn.fairseq_tools.run_fairseq import run_fairseq
from nas_attn.plan import NO_ATTENTION, SITES, AttentionChoice, AttentionPlan
from nas_attn.trials.processes.fork_server import ForkServer
from nas_attn.trials.processes.launch import Launcher

logger = logging.getLogger(__name__)

TASKS = ("translation", "language_modeling", "masked_lm")
"""fairseq's names of what is tried; a masked language model is fine-tuned as a classifier, too."""

MIXED = "mixed_plan"
"""Stands for a plan with another scheme in every layer of every site."""

TEST_SENTENCES = 61
LEAST_ACCURACY = 75
"""Percent of the classifier on a task in which guessing gives 50."""

COMMON = [
    "--optimizer=adam", "--lr=0.003", "--num-workers=0", "--no-epoch-checkpoints", "--seed=1",
    "--required-batch-size-multiple=1", "--update-epoch-batch-itr=True", "--log-format=simple",
    "--dropout=0", "--attention-dropout=0.1",
]  # fmt: skip
ENCODER = ["--encoder-embed-dim=16", "--encoder-ffn-embed-dim=16", "--encoder-attention-heads=4"]
DECODER = ["--decoder-embed-dim=16", "--decoder-ffn-embed-dim=16", "--decoder-attention-heads=4"]


Proof = Callable[[str], str]
"""Takes a command's output and returns what it shows, or raises `Unproven`."""


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What became of one command.

    Args:
        scheme: Name of the scheme, or `MIXED`.
        task: Name of the task in fairseq.
        step: Name of the step, such as train, resume, generate.
        seconds: Seconds that the command took.
        shown: Figures that the command printed.
        fault: Description of what is wrong; None if it works.
    """

    scheme: str
    task: str
    step: str
    seconds: float
    shown: str
    fault: str | None


@dataclass(frozen=True, kw_only=True)
class SelfTestStep:
    """A command and what its output must show."""

    name: str
    task: str
    module: str
    arguments: tuple[str, ...]
    proof: Proof


def examine(
    schemes: Sequence[str], tasks: Sequence[str], folder: Path, *, workers: int = 1
) -> Iterator[StepOutcome]:
    """Train, resume, and generate or evaluate with every scheme on every task.

    A masked language model is also fine-tuned as a classifier. Commands are those that a person
    would type; each is a process of its own.

    Args:
        schemes: Names in the registry, or `MIXED`.
        tasks: Some of `TASKS`.
        folder: Folder for data, checkpoints and logs; made if it is not there.
        workers: Commands at a time, one thread each.

    Yields:
        A finding for each command, in order. After a fault the rest of the task is left out.

    Raises:
        NasAttnError: a scheme or a task is unknown.
    """
    for given, known in ((schemes, (*SCHEMES, MIXED)), (tasks, TASKS)):
        for name in given:
            if name not in known:
                raise NasAttnError(f"cannot try {name!r}; there are {', '.join(known)}")
    data = _prepare(folder / "data", tasks)
    warm = threading.local()  # a launcher serves one thread

    def work(scheme: str, task: str) -> list[StepOutcome]:
        if not hasattr(warm, "launcher"):
            warm.launcher = ForkServer()
            launchers.append(warm.launcher)
        steps = steps_of(scheme, task, data[task], folder)
        return run_steps(scheme, steps, folder, warm.launcher)

    launchers: list[Launcher] = []
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(work, scheme, task) for scheme in schemes for task in tasks]
        try:
            for job in jobs:
                yield from job.result()
        finally:
            pool.shutdown(cancel_futures=True)
            for launcher in launchers:
                launcher.close()


def steps_of(scheme: str, task: str, data: Path, folder: Path) -> list[SelfTestStep]:
    """The commands that try one scheme on one task."""
    save = folder / f"{scheme}-{task}"
    last = f"--path={save}/checkpoint_last.pt"
    every = "--required-batch-size-multiple=1"
    if task == "translation":
        training = _training(scheme, "transformer", SITES, data, save)
        training += [*_layers(scheme, "encoder"), *_layers(scheme, "decoder"), *ENCODER, *DECODER]
        training += ["--share-all-embeddings", "--max-tokens=512"]
        training += ["--criterion=label_smoothed_cross_entropy", "--label-smoothing=0.1"]
        decoding = [str(data), last, every, "--gen-subset=test", "--batch-size=7", "--beam=5"]
        decoding += ["--max-len-b=12", "--scoring=sacrebleu"]
        ending = SelfTestStep(
            name="generate",
            task=task,
            module="generate",
            arguments=tuple(decoding),
            proof=_all_decoded,
        )
        return [*_train_and_resume(task, training), ending]
    if task == "language_modeling":
        training = _training(scheme, "transformer_lm", ("decoder_self",), data, save)
        training += [*_layers(scheme, "decoder"), *DECODER, "--task=language_modeling"]
        training += ["--share-decoder-input-output-embed", "--tokens-per-sample=32"]
        training += ["--sample-break-mode=none", "--max-tokens=512"]
        scoring = [str(data), last, every, "--batch-size=4", "--tokens-per-sample=32"]
        ending = SelfTestStep(
            name="eval",
            task=task,
            module="eval_lm",
            arguments=tuple(scoring),
            proof=_shows(r"Perplexity: ([\d.]+)", "ppl"),
        )
        return [*_train_and_resume(task, training), ending]
    return _masked_steps(scheme, data, save)


def _masked_steps(scheme: str, data: Path, save: Path) -> list[SelfTestStep]:
    every = "--required-batch-size-multiple=1"
    text = data / "input0"
    shared = [*_layers(scheme, "encoder"), "--encoder-embed-dim=32", "--encoder-ffn-embed-dim=64"]
    shared += ["--encoder-attention-heads=4", "--max-positions=64", "--encoder-normalize-before"]
    shared += ["--clip-norm=1"]
    training = _training(scheme, "roberta", ("encoder_self",), text, save)
    training += [*shared, "--task=masked_lm", "--criterion=masked_lm", "--tokens-per-sample=64"]
    training += ["--sample-break-mode=complete", "--max-tokens=512"]
    last = f"{save}/checkpoint_last.pt"
    validation = [str(text), f"--path={last}", every, "--task=masked_lm", "--criterion=masked_lm"]
    validation += ["--valid-subset=test", "--batch-size=32"]
    # bos, the symbol that every sentence begins with, has index 0 in fairseq's dictionaries.
    classes = ["--task=sentence_prediction", "--criterion=sentence_prediction", "--num-classes=2"]
    classes += ["--init-token=0", "--batch-size=32"]
    fine = save.with_name(save.name + "-classifier")
    tuning = _training(scheme, "roberta", ("encoder_self",), data, fine)
    tuning += [*shared, *classes, f"--restore-file={last}", "--reset-optimizer"]
    tuning += ["--reset-dataloader", "--reset-meters", "--reset-lr-scheduler"]
    tuning += ["--lr=0.001", "--max-epoch=4"]
    tuning += ["--best-checkpoint-metric=accuracy", "--maximize-best-checkpoint-metric"]
    judging = [str(data), f"--path={fine}/checkpoint_last.pt", every, *classes]
    judging += ["--valid-subset=test"]
    task = "sentence_prediction"
    return [
        *_train_and_resume("masked_lm", training),
        SelfTestStep(
            name="eval",
            task="masked_lm",
            module="validate",
            arguments=tuple(validation),
            proof=_shows(r"test \| .*ppl ([\d.]+)", "ppl"),
        ),
        SelfTestStep(
            name="fine-tune",
            task=task,
            module="train",
            arguments=tuple(tuning),
            proof=_shows(rf"Loaded checkpoint {re.escape(last)}"),
        ),
        SelfTestStep(
            name="eval",
            task=task,
            module="validate",
            arguments=tuple(judging),
            # Without attention a sentence's first symbol, which is classified, sees itself alone.
            proof=_accuracy if scheme == NO_ATTENTION else _has_learnt,
        ),
    ]


def _prepare(folder: Path, tasks: Sequence[str]) -> dict[str, Path]:
    corpus = make_demo_corpus(seed=3, train_sentences=300)
    for split in ("valid", "test"):
        corpus[split] = [side[:TEST_SENTENCES] for side in corpus[split]]
    labelled = make_classification_corpus(seed=3, train_sentences=3000)
    target = {split: [sides[1]] for split, sides in corpus.items()}
    data: dict[str, Path] = {}
    for task in tasks:
        data[task] = folder / task
        if task == "translation":
            prepare(corpus, LANGUAGES, data[task], vocab_size=200, subword="word")
        elif task == "language_modeling":
            prepare(target, (), data[task], vocab_size=200, subword="word")
        else:
            prepare_classification(labelled, data[task], vocab_size=200)
    return data


def _training(scheme: str, family: str, sites: Sequence[str], data: Path, save: Path) -> list[str]:
    if scheme != MIXED:
        return [str(data), f"--arch={scheme}_{family}", f"--save-dir={save}", *COMMON]
    choices = [AttentionChoice(name) for name in SCHEMES]
    # Rotated, so that a layer has another scheme at each of its sites.
    plan = AttentionPlan.of(
        {site: choices[turn:] + choices[:turn] for turn, site in enumerate(sites)}
    )
    arch = f"--arch=multi_head_{family}"
    return [str(data), arch, "--attention-plan", plan.dumps(), f"--save-dir={save}", *COMMON]


def _layers(scheme: str, side: str) -> list[str]:
    return [f"--{side}-layers={len(SCHEMES) if scheme == MIXED else 1}"]


def _train_and_resume(task: str, training: list[str]) -> list[SelfTestStep]:
    first = SelfTestStep(
        name="train",
        task=task,
        module="train",
        arguments=(*training, "--max-epoch=1"),
        proof=_shows(r"done training"),
    )
    second = SelfTestStep(
        name="resume",
        task=task,
        module="train",
        arguments=(*training, "--max-epoch=2"),
        proof=_shows(r"Loaded checkpoint \S+ \(epoch 2 @ [1-9]\d* updates\)"),
    )
    return [first, second]


class Unproven(Exception):
    """A command's output lacks what it must show."""


def _shows(pattern: str, unit: str = "") -> Proof:
    """Look for a pattern; what it captures is shown with its unit."""

    def proof(output: str) -> str:
        found = re.search(pattern, output)
        if found is None:
            raise Unproven(f"the output lacks {pattern}")
        return " ".join([unit, *found.groups()]).strip()

    return proof


def _all_decoded(output: str) -> str:
    decoded = output.count("\nH-")
    if decoded != TEST_SENTENCES:
        raise Unproven(f"{decoded} of {TEST_SENTENCES} sentences were decoded")
    _shows(r"BLEU4? = [\d.]+")(output)
    return f"{decoded} sentences"


def _accuracy(output: str) -> str:
    return _shows(r"test \| .*accuracy ([\d.]+)", "accuracy")(output)


def _has_learnt(output: str) -> str:
    shown = _accuracy(output)
    if float(shown.split()[1]) < LEAST_ACCURACY:
        raise Unproven(f"{shown}, but at least {LEAST_ACCURACY} of 100 should be classified right")
    return shown


def run_steps(
    scheme: str, steps: Sequence[SelfTestStep], folder: Path, launcher: Launcher | None = None
) -> list[StepOutcome]:
    """Run commands one after the other, up to the first fault; logs go into the folder."""
    findings = []
    for step in steps:
        log = folder / f"{scheme}-{step.task}-{step.name}.log"
        done = run_fairseq(step.module, step.arguments, log, launcher=launcher)
        shown, fault = "", None
        try:
            shown = step.proof(done.output)
        except Unproven as error:
            fault = str(error)
        if done.status != 0:
            fault = f"exit status {done.status}: {_last_line(done.output)}"
        finding = StepOutcome(
            scheme=scheme,
            task=step.task,
            step=step.name,
            seconds=done.seconds,
            shown=shown,
            fault=fault,
        )
        findings.append(finding)
        verdict = (shown or "ok") if fault is None else fault
        about = (scheme, step.task, step.name, verdict, finding.seconds)
        logger.info("%s: %s %s: %s (%.0f s)", *about)
        if fault is not None:
            break
    return findings


def _last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
