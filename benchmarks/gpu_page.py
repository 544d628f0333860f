"""Which targets were reached on a GPU, and the page that says what was measured."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas_attn.report.rendering import markdown_text

Rows = Sequence[Mapping[str, Any]]
STOCK, OURS, SDPA = "fairseq", "multi_head", "torch sdpa"
SHARING = (
    "grouped_query", "multi_query", "head_embedding_add", "head_embedding_mul", "shared_key_value",
)  # fmt: skip
"""Schemes that are to be no slower than multi-head attention, and to decode in half its time."""
LONG_CACHE = 8192
SEARCHED = {
    "trial": "trial",
    "plan": "plan",
    "cost": "total parameters",
    "cost_change": "change",
    "effective_cost": "effective parameters",
    "loss": "nll_loss",
    "loss_change": "change",
    "seconds": "seconds",
}
PREDICTED = {
    "plan": "plan",
    "cost": "cost",
    "cost_change": "change",
    "corrected": "predicted change of the loss",
    "measured": "measured",
}
SHORT = 2048
PHASES = {
    "forward": "Forward",
    "forward_backward": "Forward and backward",
    "decode": "A decoding step",
    "reorder": "Reordering what decoding keeps",
}


@dataclass(frozen=True)
class Target:
    """Something to be reached: what, and what was measured; None if nothing was."""

    what: str
    is_reached: bool | None
    measured: str

    @property
    def word(self) -> str:
        return {True: "reached", False: "missed", None: "not measured"}[self.is_reached]

    def __str__(self) -> str:
        return f"{self.word:12}  {self.what}: {self.measured or '-'}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"word": self.word}


def data_of(results: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = results.get(part, {}).get("data") or {}
    return found


def targets(results: Mapping[str, Any]) -> list[Target]:
    """All targets, judged by what is there."""
    found = [training_target(data_of(results, "d").get("speeds", ()))]
    about = data_of(results, "c")
    rows, width = about.get("schemes", ()), int(about.get("embed_dim", 512))
    for scheme in SHARING:
        found.append(module_target(rows, scheme, 1.0))
    for scheme in SHARING:
        found.append(decoding_target(rows, scheme, 0.5))
    found.append(module_target(rows, f"collaborative (shared_dim {width // 4})", 1.1, SHORT))
    return found


def training_target(speeds: Rows) -> Target:
    what = (
        "multi_head trains at least as fast as stock fairseq (words/s over stock's, 1.00 or more)"
    )
    by_name = {speed["contender"]: speed["words_a_second"] for speed in speeds}
    spreads = {speed["contender"]: speed.get("update_spreads", ()) for speed in speeds}
    if not (by_name.get(OURS) and by_name.get(STOCK)):
        return Target(what, None, "")
    ratio = statistics.median(by_name[OURS]) / statistics.median(by_name[STOCK])
    rounds = f"rounds: {len(by_name[OURS])} and {len(by_name[STOCK])}"
    spread = max(
        spread_of(by_name[name]) if len(by_name[name]) > 1 else max(spreads[name], default=0.0)
        for name in (OURS, STOCK)
    )
    return Target(what, ratio >= 1.0, f"{ratio:.3f} ±{spread:.1%}, {rounds}")


def module_target(rows: Rows, scheme: str, most: float, longest: int | None = None) -> Target:
    """Forward and backward at every length, or up to one, over torch's multi-head attention."""
    where = "at every length" if longest is None else f"up to {longest:,} tokens"
    what = f"{scheme}: forward and backward take at most {most:.2f} of multi-head's time {where}"
    measured = [
        row
        for row in rows
        if row["phase"] == "forward_backward"
        and named(row["contender"], scheme)
        and (longest is None or row["length"] <= longest)
    ]
    if not measured:
        return Target(what, None, "")
    worst = max(measured, key=lambda row: float(row["ratio"]))
    within = sum(row["ratio"] <= most for row in measured)
    at = f"{ratio_text(worst)} at {shape_of(worst)}, the worst"
    text = f"{at}; {within} of {len(measured)} lengths within"
    return Target(what, within == len(measured), text)


def decoding_target(rows: Rows, scheme: str, most: float) -> Target:
    """A decoding step after many tokens, over our own multi-head attention's."""
    share = f"takes at most {most:.2f} of multi_head's time"
    what = f"{scheme}: a decoding step after {LONG_CACHE:,} tokens {share}"
    steps = [row for row in rows if row["phase"] == "decode" and row["length"] == LONG_CACHE]
    ours = [row for row in steps if row["contender"] == OURS]
    its = [row for row in steps if named(row["contender"], scheme)]
    if not (ours and its):
        return Target(what, None, "")
    ratio = its[0]["median_ms"] / ours[0]["median_ms"]
    spread = max(its[0]["spread"], ours[0]["spread"])
    return Target(what, ratio <= most, f"{ratio:.2f} ±{spread:.0%} at {shape_of(its[0])}")


def named(contender: str, scheme: str) -> bool:
    return contender == scheme or contender.startswith(f"{scheme} (")


def shape_of(row: Mapping[str, Any]) -> str:
    return f"{row['batch']}x{row['length']}"


def ratio_text(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.2f} ±{row['spread']:.0%}"


def spread_of(values: Sequence[float]) -> float:
    """From the least to the most, over the median."""
    return (max(values) - min(values)) / statistics.median(values)


def write_page(results: Mapping[str, Any], judged: Sequence[Target], path: Path) -> None:
    """Write the page of all parts that there are."""
    sections = [heading(results), said(results, judged)]
    for part, write in SECTIONS.items():
        if part in results:
            sections.append(write(results[part]["title"], data_of(results, part), results[part]))
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """A Markdown table; columns after the first ones are numbers, to the right."""
    marks = ["---"] * left + ["---:"] * (len(head) - left)
    lines = [head, marks, *([markdown_text(str(cell)) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quoted(text: str) -> str:
    """A text of several lines as it is, in a block that nothing in it can end."""
    return "\n".join("    " + line for line in text.splitlines())


def heading(results: Mapping[str, Any]) -> str:
    about = data_of(results, "a")
    first = next(iter(results.values()))
    name = about.get("gpu") or "a CPU"
    rows: list[tuple[str, str]] = [("GPU", about.get("gpu") or "none")]
    if about.get("gpu"):
        rows.append(("memory", f"{about['memory_mib']:,} MiB"))
        rows.append(("compute capability", about["compute_capability"]))
    rows += [
        ("nvidia-smi", about.get("nvidia_smi", "")),
        ("NVML answers", about.get("nvml", "")),
        ("CPU", about.get("cpu", "")),
        ("commit", ", ".join(dict.fromkeys(result["commit"] for result in results.values()))),
        ("Python", about.get("python", "")),
        ("CUDA, cuDNN", f"{about.get('cuda')}, {about.get('cudnn')}"),
        ("packages", ", ".join(f"{k} {v}" for k, v in about.get("packages", {}).items())),
        ("C compiler, Python's headers", compiler_text(about)),
        ("fairseq's extensions", ", ".join(about.get("fairseq_extensions", ())) or "none"),
        ("backends of attention", backends_text(about.get("sdpa", {}))),
    ]
    dry = (
        "A dry run: tiny sizes on a CPU, which say nothing about speed.\n\n" if first["dry"] else ""
    )
    return (
        f"# On {article(name)}, {first['date'][:10]}\n\n{dry}"
        + table(["", ""], rows, left=2)
        + "\n\nWritten by `benchmarks/gpu.py`; `gpu.json` beside this page has every number."
    )


def compiler_text(about: Mapping[str, Any]) -> str:
    """What `torch.compile` needs on a GPU."""
    return f"{about.get('compiler')}, {'there' if about.get('python_headers') else 'missing'}"


def article(name: str) -> str:
    if name.startswith("a "):
        return name
    return f"an {name}" if name[:1] in "AEINO" else f"a {name}"


def backends_text(backends: Mapping[str, Mapping[str, bool]]) -> str:
    return ", ".join(
        f"{name} {'on' if it['on'] else 'off'}"
        + ("" if it["takes_bf16"] else " (refuses bfloat16 heads of 64)")
        for name, it in backends.items()
    )


def said(results: Mapping[str, Any], judged: Sequence[Target]) -> str:
    """Targets, and how each part ended."""
    rows = [(target.what, target.word, target.measured) for target in judged]
    reached = sum(target.is_reached is True for target in judged)
    measured = sum(target.is_reached is not None for target in judged)
    states = [
        (
            f"{part}: {result['title']}",
            result["state"],
            (result["reason"].splitlines() or [""])[-1],
            f"{result['seconds']:.0f}",
        )
        for part, result in results.items()
    ]
    return (
        f"## What it says\n\n{reached} of {measured} measured targets were reached.\n\n"
        + table(["target", "", "measured"], rows, left=3)
        + "\n\n"
        + table(["part", "", "why", "seconds"], states, left=3)
    )


def tests_section(title: str, data: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    found = data.get("tests", ())
    counts = ", ".join(f"{count} {state}" for state, count in data.get("counts", {}).items())
    if not found:
        return f"## Tests that need a GPU\n\nNothing:\n\n{quoted(result['reason'])}"
    text = f"## Tests that need a GPU\n\n{counts}.\n\n"
    by_file: dict[str, list[Mapping[str, Any]]] = {}
    for test in found:
        by_file.setdefault(test["test"].partition("::")[0], []).append(test)
    states = ("passed", "failed", "skipped", "not run")
    rows = [
        [
            name,
            *(sum(test["state"] == state for test in its) for state in states),
            f"{sum(test['seconds'] for test in its):.0f}",
        ]
        for name, its in by_file.items()
    ]
    text += table(["file", *states, "seconds"], rows)
    for test in found:
        if test["state"] == "failed":
            text += f"\n\n`{test['test']}` failed:\n\n{quoted(test['lines'])}"
    unrun = [f"`{test['test']}`" for test in found if test["state"] == "not run"]
    return text + (f"\n\nNot run: {', '.join(unrun)}." if unrun else "")


def attention_section(title: str, data: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    about = (
        f"Width {data.get('embed_dim')}, {data.get('num_heads')} heads, {data.get('dtype')}. A "
        f"cell is the median time over that of multi-head attention on torch's "
        f"`scaled_dot_product_attention` (`{SDPA}`), when decoding over that of fairseq's own "
        "attention, with the quartile range over the median as ±. A shape is sequences x tokens, "
        "when decoding hypotheses x tokens so far."
    )
    text = f"## Attention by itself\n\n{about}"
    for key, name in (("schemes", "Every scheme"), ("implementations", "Every implementation")):
        if data.get(key):
            text += f"\n\n### {name}\n\n{phases_text(data[key])}"
    return text + calibration_text(data)


def calibration_text(data: Mapping[str, Any]) -> str:
    """Times of implementations case by case, and the thresholds that follow."""
    rows = data.get("calibration", ())
    if not rows:
        return ""
    text = (
        "\n\n### Calibration\n\nWhat schemes have in common, by implementation, over the time of a "
        "case's first one; `flex` is compiled before. What cannot do a shape is left out."
    )
    for phase in dict.fromkeys(row["phase"] for row in rows):
        its = [row for row in rows if row["phase"] == phase]
        shapes = list(dict.fromkeys(shape_of(row) for row in its))
        cells = {(row["contender"], shape_of(row)): row for row in its}
        text += f"\n\n{PHASES[phase]}:\n\n" + table(
            ["", *shapes],
            [
                [name, *(ratio_text(cells[name, s]) if (name, s) in cells else "" for s in shapes)]
                for name in dict.fromkeys(row["contender"] for row in its)
            ],
        )
    found = data.get("thresholds")
    if found:
        rows_text = "\n".join(f"{name}: {json.dumps(value)}" for name, value in found.items())
        text += f"\n\nThe thresholds that fit them:\n\n{quoted(rows_text)}"
    return text


def phases_text(rows: Rows) -> str:
    found = []
    for phase in dict.fromkeys(row["phase"] for row in rows):
        its = [row for row in rows if row["phase"] == phase]
        shapes = list(dict.fromkeys(shape_of(row) for row in its))
        cells = {(row["contender"], shape_of(row)): row for row in its}
        base = STOCK if phase in ("decode", "reorder") else SDPA
        took = ["", *(f"{cells[base, shape]['median_ms']:.3f} ms" for shape in shapes)]
        took[0] = f"{base} took"
        lines = [
            [name, *(ratio_text(row) if (row := cells.get((name, s))) else "" for s in shapes)]
            for name in dict.fromkeys(row["contender"] for row in its)
        ]
        found.append(f"{PHASES[phase]}:\n\n" + table(["", *shapes], [took, *lines]))
        peaks = [row for row in its if row["peak_mb"] and shape_of(row) == shapes[-1]]
        if peaks and phase == "forward_backward":
            memory = ", ".join(f"{row['contender']} {row['peak_mb']:,.0f}" for row in peaks)
            found.append(f"Most memory of a turn at {shapes[-1]}, MB: {memory}.")
    return "\n\n".join(found)


def fairseq_section(title: str, data: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    speeds = data.get("speeds", ())
    text = (
        "## fairseq's commands\n\n"
        "`fairseq-train --arch=transformer` (width 512, 8 heads, 6 and 6 layers, if nothing else "
        f"is said) with `{' '.join(data.get('flags', ()))}`: target words a second, median "
        f"of updates {data.get('first_updates', 0) + 1} to {data.get('updates')}. "
        f"`fairseq-generate` in {data.get('precision')}, {data.get('beam')} hypotheses a sentence, "
        f"all translations {data.get('length')} tokens long: tokens a second, the first batch with "
        "its warm-up included. Made-up text; medians of the rounds, and from the least to the most "
        "of them over the median as ±; `updates ±` is the quartile range of a training's updates "
        "over their median, the widest. bfloat16 is left out: stock fairseq takes it through hydra "
        "only.\n\n"
    )
    stock = next((speed for speed in speeds if speed["contender"] == STOCK), None)
    rows = []
    for speed in speeds:
        cells = [speed["contender"]]
        for measure in ("words_a_second", "decoding"):
            times = 1 if measure == "words_a_second" else data["length"]
            cells += speed_cells(speed[measure], stock[measure] if stock else [], times)
        cells.insert(4, f"{max(speed['update_spreads']):.1%}" if speed["update_spreads"] else "")
        rows.append(cells)
    head = ["", "words/s", "/ stock", "rounds", "updates ±"]
    head += ["tokens/s", "/ stock", "rounds"]
    text += table(head, rows)
    if data.get("cold_starts"):
        text += f"\n\nThe fork server was not used: {markdown_text(data['cold_starts'][0])}"
    for speed in speeds:
        if speed["failure"]:
            text += f"\n\n{speed['contender']} failed:\n\n{quoted(speed['failure'])}"
    return text


def speed_cells(values: Sequence[float], stock: Sequence[float], times: int) -> list[str]:
    """What was measured, so many times as much, its ratio and the number of rounds."""
    if not values:
        return ["", "", "0"]
    median = statistics.median(values)
    spread = f" ±{spread_of(values):.1%}" if len(values) > 1 else ""
    ratio = f"{median / statistics.median(stock):.3f}" if stock else ""
    return [f"{times * median:,.0f}{spread}", ratio, str(len(values))]


def search_section(title: str, data: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    if not data:
        return f"## A search\n\nNothing:\n\n{quoted(result['reason'])}"
    states = [row.get("state") or row.get("status") or "" for row in data["trials"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    settings = " ".join(f"--set {text}" for text in data["settings"])
    settings = re.sub(r"data\.folder=\S+", "data.folder=DATA", settings)
    forked = "Trainings were forked off a server that has fairseq imported."
    if data["cold_starts"]:
        forked = f"The fork server was not used: {markdown_text(data['cold_starts'][0])}."
    return (
        f"## A search\n\n`nas-attn search demo {settings}`: {data['seconds']:.0f} s, trials: "
        f"{counts}. {data['trainings_on_a_gpu']} of {data['trainings']} trainings name the GPU in "
        f"their logs. {forked} The front and the baseline:\n\n"
        + front_table(data["front"], SEARCHED)
    )


def front_table(front: Rows, columns: Mapping[str, str]) -> str:
    """Rows of a front: some of their columns, under other names."""
    rows = [[cell_text(name, row.get(name)) for name in columns] for row in front]
    return table(list(columns.values()), rows, left=1 + list(columns).index("plan"))


def cell_text(name: str, value: Any) -> str:
    """A cost, a loss or a text; nothing of what is not there."""
    if value is None:
        return ""
    if name.endswith("cost_change"):
        return f"{value:+.1%}"
    if name == "seconds":
        return f"{value:.1f}"
    if isinstance(value, float):
        return f"{value:.4f}" if name == "loss" else f"{value:+.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def sensitivity_section(title: str, data: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    if not data:
        return f"## What single conversions predict\n\nNothing:\n\n{quoted(result['reason'])}"
    forked = f" {markdown_text(data['cold_starts'][0])}." if data["cold_starts"] else ""
    return (
        f"## What single conversions predict\n\n{data['changes']} single conversions of the "
        f"search's baseline and {data['checks']} plans that test predictions were measured in "
        f"{data['seconds']:.0f} s.{forked} {markdown_text(data['verdict'])} The predicted front, "
        f"by {data['axis'].replace('_', ' ')}:\n\n" + front_table(data["front"], PREDICTED)
    )


SECTIONS: dict[str, Callable[[str, Mapping[str, Any], Mapping[str, Any]], str]] = {
    "b": tests_section,
    "c": attention_section,
    "d": fairseq_section,
    "e": search_section,
    "f": sensitivity_section,
}
