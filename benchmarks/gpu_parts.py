"""The parts of benchmarks/gpu.py. Each runs in a process of its own, and hands on what it has."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import logging
import os
import platform
import shutil
import subprocess
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu_tests import run_tests

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "torch", "numpy", "scipy", "pandas", "optuna", "pydantic", "fairseq-fixed", "hydra-core",
    "omegaconf", "sentencepiece", "sacrebleu", "ray", "transformers", "triton", "pytest",
)  # fmt: skip
EXTENSIONS = ("libbase", "libnat", "alignment_train_cpu_binding")
"""Compiled modules of fairseq that nothing here uses, and that wheels may come without."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a part is told.

    Args:
        out: Folder of the results.
        work: Folder of data sets, checkpoints and logs.
        seconds: Time of the part; what has not been done then is left out.
        dry: Tiny sizes on the CPU.
        commit: Of the checkout.
    """

    out: Path
    work: Path
    seconds: float
    dry: bool
    commit: str

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"


Keep = Callable[[Mapping[str, Any]], None]
"""Takes all that a part has so far; what it was given last is what is kept."""


@dataclass(frozen=True)
class Part:
    """A part: its title, its share of the time, and what it does."""

    title: str
    weight: float
    run: Callable[[Settings, Keep], None]


def read_json(path: Path) -> dict[str, Any]:
    """What is in a file; nothing if it is not there, or not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a file at once, so that one that is there is whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, default=str), encoding="utf-8")
    partial.replace(path)


def run_part(name: str, settings: Settings) -> int:
    """Run a part in this process; returns its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        PARTS[name].run(
            settings, lambda data: write_json(settings.work / f"{name}.data.json", data)
        )
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def say(text: str) -> None:
    print(f"   {text}", flush=True)


# a: the machine


def machine(settings: Settings, keep: Keep) -> None:
    """GPU, driver, versions, attention backends."""
    import torch

    cudnn: Any = torch.backends.cudnn
    about: dict[str, Any] = {
        "commit": settings.commit,
        "python": platform.python_version(),
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores",
        "packages": {name: version for name in PACKAGES if (version := version_of(name))},
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version(),
        "nvidia_smi": smi(),
        "nvml": nvml(),
        "fairseq_extensions": [
            name for name in EXTENSIONS if importlib.util.find_spec(f"fairseq.{name}")
        ],
        "compiler": shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or "none",
        "python_headers": (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file(),
        "gpu": None,
    }
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        about |= {"gpu": found.name, "memory_mib": found.total_memory // 2**20}
        about |= {"compute_capability": f"{found.major}.{found.minor}"}
        about |= {"gpus": torch.cuda.device_count(), "bf16": torch.cuda.is_bf16_supported()}
    about["sdpa"] = sdpa_backends("cuda" if about["gpu"] else "cpu")
    keep(about)
    say(f"{about['gpu'] or 'no GPU'}, torch {torch.__version__}, commit {settings.commit[:12]}")
    if about["gpu"] is None and not settings.dry:
        raise RuntimeError("PyTorch finds no GPU here; --dry tries everything on the CPU")


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def smi() -> str:
    """Driver and memory as nvidia-smi has them, or why it does not answer."""
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no answer: {error}"
    return done.stdout.strip() or f"no answer: {done.stderr.strip()[:200]}"


def nvml() -> str:
    """Whether NVML answers, without which PyTorch asks CUDA itself for the number of GPUs."""
    try:
        status = ctypes.CDLL("libnvidia-ml.so.1").nvmlInit_v2()
    except OSError as error:
        return f"no: {error}"
    return "yes" if status == 0 else f"no: nvmlInit_v2 returns {status}"


def sdpa_backends(device: str) -> dict[str, dict[str, Any]]:
    """Which backends of torch's fused attention are on, and which take bfloat16 heads of 64."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    cuda: Any = torch.backends.cuda
    on = {
        "flash": (cuda.flash_sdp_enabled(), SDPBackend.FLASH_ATTENTION),
        "efficient": (
            cuda.mem_efficient_sdp_enabled(),
            SDPBackend.EFFICIENT_ATTENTION,
        ),
        "cudnn": (cuda.cudnn_sdp_enabled(), SDPBackend.CUDNN_ATTENTION),
        "math": (cuda.math_sdp_enabled(), SDPBackend.MATH),
    }
    heads = torch.zeros(2, 8, 128, 64, device=device, dtype=torch.bfloat16)
    found: dict[str, dict[str, Any]] = {}
    for name, (is_on, backend) in on.items():
        try:
            with sdpa_kernel(backend):
                torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
        except RuntimeError:
            works = False
        else:
            works = True
        found[name] = {"on": bool(is_on), "takes_bf16": works}
    return found


# b: tests


def tests(settings: Settings, keep: Keep) -> None:
    """All tests that are marked cuda; in a dry run, a few that there are."""
    selection, places = ["-m", "cuda"], []
    if settings.dry:
        selection = ["-k", "cuda_agrees and multi or only_the_marker"]
        places = ["tests/attention/test_contract.py", "tests/test_markers.py"]
    folder = settings.work / "tests"
    run_tests(selection, folder, settings.seconds, keep, say, places=places)


# c: attention by itself

Texts = tuple[str, ...]
SHAPES: Texts = ("256x128", "64x512", "16x2048", "8x4096", "4x8192", "2x16384")
DECODING_SHAPES: Texts = ("16x512", "16x2048", "16x8192", "4x32768")
IMPLEMENTATION_SHAPES: Texts = ("256x128", "64x512", "16x2048", "4x8192")


def attention(settings: Settings, keep: Keep) -> None:
    """All schemes, every implementation, and the calibration; kept as it is measured.

    `flex` compiles for minutes: it is in the calibration's last case only, the last thing that is
    timed. If time runs out there, all else is kept, and only that case and the thresholds are not.
    """
    import torch

    from nas_attn.attention.functional import IMPLEMENTATIONS
    from nas_attn.benchmark.attention import time_attention
    from nas_attn.benchmark.calibration import fit_thresholds, time_cases
    from nas_attn.benchmark.setting import Setting, Shape, Timing

    # Some rounds take longer than they are asked to, as every contender has some turns.
    seconds = 0.0 if settings.dry else settings.seconds / 60
    setting = Setting(
        embed_dim=64 if settings.dry else 512,
        num_heads=4 if settings.dry else 8,
        device=settings.device,
        dtype=torch.bfloat16,
        seconds=seconds,
    )
    lengths, caches, few = SHAPES, DECODING_SHAPES, IMPLEMENTATION_SHAPES
    if settings.dry:
        lengths, caches, few = ("2x8", "1x16"), ("2x16", "1x8192"), ("2x8",)
    data: dict[str, Any] = {"dtype": "bfloat16", "torch": torch.__version__}
    data |= {"embed_dim": setting.embed_dim, "num_heads": setting.num_heads}

    def shapes(texts: Texts) -> list[Shape]:
        return [Shape.parse(text) for text in texts]

    def note(name: str, timings: Iterator[Timing]) -> list[Timing]:
        found: list[Timing] = []
        data[name] = []
        for timing in timings:
            if not found or (timing.phase, timing.length) != (found[-1].phase, found[-1].length):
                keep(data)
                say(f"{name}: {timing.phase} {timing.batch}x{timing.length}")
            found.append(timing)
            data[name].append(asdict(timing))
        keep(data)
        return found

    note("schemes", time_attention(setting, shapes(lengths), shapes(caches)))
    longer = replace(setting, seconds=1.5 * seconds)
    eager = [name for name in IMPLEMENTATIONS if name != "flex"]  # it compiles for minutes
    note("implementations", time_attention(longer, shapes(few), (), implementations=eager))
    shorter = replace(setting, seconds=0.3 * seconds)
    cases = note("calibration", time_cases(shorter, shapes(few)))
    data["thresholds"] = asdict(fit_thresholds(cases, setting, "benchmarks/gpu.py"))
    keep(data)


# d: fairseq's commands

BASE = ("--share-all-embeddings", "--lr-scheduler=inverse_sqrt", "--warmup-updates=4000")
TINY = tuple(
    f"--{side}-{size}"
    for side in ("encoder", "decoder")
    for size in ("layers=1", "embed-dim=16", "ffn-embed-dim=16", "attention-heads=4")
)


def fairseq(settings: Settings, keep: Keep) -> None:
    """fairseq's commands with stock attention, our multi-head attention and every scheme.

    multi_head and stock take turns first, and again at the end while there is time, as a target is
    between them; the other schemes have one training and one generation each.
    """
    from nas_attn.attention import SCHEMES
    from nas_attn.benchmark.commands import Commands, Speed, time_commands
    from nas_attn.trials.processes.fork_server import ForkServer

    began = time.monotonic()
    folder = settings.work / "fairseq"
    data = synthetic_text(settings)
    precision = () if settings.dry else ("--fp16",)
    launcher = ForkServer()
    commands = Commands(
        flags=[
            *BASE,
            *precision,
            *(("--max-tokens=512", *TINY) if settings.dry else ("--max-tokens=8192",)),
        ],
        generate_flags=["--quiet", *precision, f"--max-tokens={512 if settings.dry else 8192}"],
        updates=4 if settings.dry else 60,
        first_updates=1 if settings.dry else 20,
        length=4 if settings.dry else 32,
        threads=1 if settings.dry else 4,
        launcher=launcher,
    )
    others = ["multi_query"] if settings.dry else [name for name in SCHEMES if name != "multi_head"]
    about: dict[str, Any] = {
        "precision": "float32" if settings.dry else "float16",
        "updates": commands.updates,
        "first_updates": commands.first_updates,
        "beam": commands.beam,
        "length": commands.length,
        "flags": list(commands.flags),
        "cold_starts": cold_starts(),
    }
    merged: dict[str, Speed] = {}

    def run(name: str, schemes: Sequence[str], **options: Any) -> None:
        before = {contender: asdict(speed) for contender, speed in merged.items()}

        def note(speeds: Sequence[Speed]) -> None:
            for speed in speeds:
                merged[speed.contender] = joined(before.get(speed.contender), speed)
            keep(about | {"speeds": [asdict(speed) for speed in merged.values()]})

        time_commands(
            data, folder / name, schemes, commands, keep_going=True, on_measured=note, **options
        )

    try:
        say("stock and multi_head")
        run("first", ["multi_head"], rounds=1, training_rounds=1 if settings.dry else 2)
        say("the other schemes")
        run("others", others, rounds=1, training_rounds=1)
        left = settings.seconds - (time.monotonic() - began)
        if left > 0.3 * settings.seconds and not settings.dry:
            say("stock and multi_head again")
            run("last", ["multi_head"], rounds=4, training_rounds=4, seconds=left)
    finally:
        launcher.close()


def joined(before: Mapping[str, Any] | None, speed: Any) -> Any:
    """What was measured before and now."""
    if before is None:
        return type(speed)(**asdict(speed))
    now = asdict(speed)
    lists = {key: before[key] + value for key, value in now.items() if isinstance(value, list)}
    return type(speed)(**(now | lists))


def synthetic_text(settings: Settings) -> Path:
    """A binarised translation set of made-up words, made once."""
    from nas_attn.fairseq_tools.data import prepare
    from nas_attn.fairseq_tools.demo_data import LANGUAGES, make_demo_corpus, make_up_words

    folder = settings.work / "text"
    if folder.is_dir():
        return folder
    say("making a corpus")
    words, train, test = (100, 300, 20) if settings.dry else (5000, 20_000, 1500)
    corpus = make_demo_corpus(
        1, train, words=make_up_words(words), lengths=(10, 40), test_sentences=test
    )
    prepare(corpus, LANGUAGES, folder, vocab_size=2 * words + 100, subword="word", workers=4)
    return folder


# e and f: a search, and what single conversions predict


def demo_overrides(settings: Settings) -> list[str]:
    """The demo's model by a search that trains every plan whole, so that trainings are what is
    timed; four at a time on the GPU."""
    found = [
        f"data.folder={settings.work}/demo-data",
        "training.seeds=[1]",
        "space=collaborative_per_site",
        "search.strategy=sampler",
        "search.warm_start=none",
        "execution.executor=local",
    ]
    if settings.dry:
        return [
            *found, "search.trials=3", "search.startup_trials=2", "execution.workers=2",
            "data.demo.train_sentences=300", "training.arguments.max-epoch=1",
        ]  # fmt: skip
    return [
        *found, "search.trials=12", "search.startup_trials=7", "resources.gpus=0.25",
        "resources.cpus=2",
    ]  # fmt: skip


class ColdStarts(logging.Handler):
    """Keeps what the log says of trainings that could not be forked."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("trainings start cold"):
            self.said.append(text)


def cold_starts() -> list[str]:
    """What the log says from now on of processes that could not be forked."""
    handler = ColdStarts()
    logging.getLogger("nas_attn").addHandler(handler)
    return handler.said


def search(settings: Settings, keep: Keep) -> None:
    """The demo study, searched; its front."""
    from nas_attn import api

    cold = cold_starts()
    began, overrides = time.monotonic(), demo_overrides(settings)
    runs = settings.work / "runs"
    try:
        api.search("demo", overrides=overrides, runs=runs)
    finally:
        seconds = time.monotonic() - began
        found = api.open_study("demo", overrides=overrides, runs=runs)
        trials = found.trials()
        logs = sorted(found.folder.glob("trials/*/seed-*/train.log"))
        named = sum("NVIDIA" in log.read_text(errors="replace") for log in logs)
        keep(
            {
                "seconds": round(seconds, 1),
                "settings": overrides,
                "trials": json.loads(trials.to_json(orient="records")),
                "front": json.loads(found.front().to_json(orient="records")),
                "cold_starts": cold,
                "trainings": len(logs),
                "trainings_on_a_gpu": named,
            }
        )


def sensitivity(settings: Settings, keep: Keep) -> None:
    """Single conversions of the searched study's baseline, trained first if it is not there."""
    from nas_attn import api
    from nas_attn.analysis.sensitivity import prediction_row

    cold = cold_starts()
    began = time.monotonic()
    predicted = api.predict_front(
        "demo",
        checks=4 if settings.dry else 12,
        points=6,
        overrides=demo_overrides(settings),
        runs=settings.work / "runs",
    )
    findings = predicted.findings
    keep(
        {
            "seconds": round(time.monotonic() - began, 1),
            "changes": len(findings.changes),
            "checks": len(findings.checks),
            "axis": findings.axis,
            "verdict": findings.verdict,
            "front": [
                prediction_row(point, findings) | {"plan": str(point.plan)}
                for point in findings.chosen
            ],
            "cold_starts": cold,
        }
    )


PARTS = {
    "a": Part("the machine", 30, machine),
    "b": Part("tests that need a GPU", 105, tests),
    "c": Part("attention by itself", 130, attention),
    "d": Part("fairseq's commands", 195, fairseq),
    "e": Part("a search", 80, search),
    "f": Part("what single conversions predict", 60, sensitivity),
}
