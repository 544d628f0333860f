"""The README of an exported model: a model card, and the commands that use the model."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import yaml

from nas_attn.fairseq_tools.commands import interactive_command, plugin_folder
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.formats import CHECKPOINT, Format
from nas_attn.fairseq_tools.same_tokens import Check
from nas_attn.plan import AttentionPlan
from nas_attn.report.rendering import markdown_text
from nas_attn.study.study import Study
from nas_attn.workflows.model_facts import ModelFacts

OWN_DATA = "DATA"
"""Stands in a printed command for a data set that is not in the folder."""
LICENCE = "unknown"
CHOOSE_A_LICENCE = (
    "# The licence of this model is yours to choose: write its identifier here, such as cc-by-4.0."
)
PIPELINES = {
    "translation": "translation",
    "language_modeling": "text-generation",
    "masked_lm": "fill-mask",
}
WITH_DATA: tuple[Format, ...] = ("plugin", "fairseq")
"""Forms whose evaluation reads a binarised test split."""
LIBRARIES: dict[Format, str] = {
    "plugin": "fairseq",
    "fairseq": "fairseq",
    "ctranslate2": "ctranslate2",
    "safetensors": "fairseq",
}
RUN_HERE = (
    "Run the commands in this folder. OMP_NUM_THREADS is the number of CPU threads: PyTorch takes "
    "all cores otherwise, and over a small model's short products they mostly wait for each other."
)
NEEDS: dict[Format, str] = {
    "plugin": f"Needs nas-attn {{version}}, which brings fairseq. {RUN_HERE}",
    "fairseq": "A checkpoint of fairseq's own Transformer: fairseq 0.12 reads it, without "
    "nas-attn. PyTorch 2.6 and later read checkpoints of fairseq 0.12 only with "
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 in the environment, which lets them run code: set it for "
    f"files that you trust. {RUN_HERE}",
    "ctranslate2": "Needs CTranslate2 (pip install ctranslate2) and nothing else of what it was "
    "trained with.",
    "safetensors": "Weights are in model.safetensors, plan and arguments in config.json; nothing "
    'is unpickled. Needs nas-attn {version} (pip install "nas-attn[export]").',
}
TRANSLATE_BY_CTRANSLATE2 = """\
import ctranslate2
import sentencepiece

pieces = sentencepiece.SentencePieceProcessor("sentencepiece.model")
translator = ctranslate2.Translator(".")
source = pieces.encode("A sentence to translate.", out_type=str)
found = translator.translate_batch([source], beam_size=5)
print(pieces.decode(found[0].hypotheses[0]))"""
TRANSLATE_PIECES_BY_CTRANSLATE2 = """\
import ctranslate2

translator = ctranslate2.Translator(".")
source = "A sentence , tokenised as the training data".split()
found = translator.translate_batch([source], beam_size=5)
print(" ".join(found[0].hypotheses[0]))"""
GENERATE_BY_CTRANSLATE2 = """\
import ctranslate2

generator = ctranslate2.Generator(".")
found = generator.generate_batch([["</s>"]], max_length=50)
print(" ".join(found[0].sequences[0]))"""
LOAD_SAFETENSORS = """\
from nas_attn.fairseq_tools.safetensors_model import load_model

model = load_model(".")  # fairseq's model, a torch.nn.Module in evaluation mode"""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is in the folder of an export.

    Args:
        data: The folder, as the data set that the commands name.
        form: Form of the model.
        bytes: Bytes of the model's own files.
        check: What the check of the form found; None for the form `plugin`.
        has_test: Whether the test set is in it.
    """

    data: PreparedData
    form: Format
    bytes: int
    check: Check | None
    has_test: bool


def card_text(study: Study, facts: ModelFacts, contents: Contents) -> str:
    """The text of README.md.

    Args:
        study: Study of the trial.
        facts: How good the trial is.
        contents: What is in the folder.
    """
    metrics = dict.fromkeys([facts.metric, *(score.name for score in facts.tests)])
    lines = [
        front_matter(study.config.training.task, tuple(metrics), contents),
        f"# Trial {facts.trial.number} of {markdown_text(study.config.name)}",
        "",
        f"Attention: {markdown_text(facts.trial.text)}",
        "",
        *[f"- {markdown_text(line)}" for line in _facts_lines(study, facts, contents)],
        "",
        markdown_text(NEEDS[contents.form].format(version=metadata.version("nas-attn"))),
        *_usage(contents),
        *_evaluation(study, contents),
    ]
    return "\n".join(lines) + "\n"


def checkpoint_card_text(task: str, plan: AttentionPlan, contents: Contents) -> str:
    """The text of README.md for a checkpoint of no study, of which no result is known.

    Args:
        task: Task of the model, such as translation.
        plan: Plan of its attention.
        contents: What is in the folder.
    """
    lines = [f"Size: {size_text(contents.bytes)}."]
    if contents.check is not None:
        lines.append(f"Checked against the model in fairseq: {contents.check}.")
    needs = NEEDS[contents.form].format(version=metadata.version("nas-attn"))
    text = [
        front_matter(task, (), contents),
        f"# A model for {task.replace('_', ' ')}",
        "",
        f"Attention: {markdown_text(str(plan))}",
        "",
        *[f"- {markdown_text(line)}" for line in lines],
        "",
        markdown_text(needs),
        *_usage(contents),
    ]
    return "\n".join(text) + "\n"


def front_matter(task: str, metrics: Sequence[str], contents: Contents) -> str:
    """The card's head in YAML, as model hubs read it; the licence is left open, in words."""
    values = {
        "license": LICENCE,
        **({"language": list(contents.data.languages)} if contents.data.languages else {}),
        "library_name": LIBRARIES[contents.form],
        "pipeline_tag": PIPELINES[task],
        "tags": ["attention", "nas-attn"],
        **({"metrics": list(metrics)} if metrics else {}),
    }
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return f"---\n{CHOOSE_A_LICENCE}\n{text}---\n"


def confirm_command(study: Study, number: int) -> str:
    """The command that confirms a trial, wherever the study's file is."""
    return f"nas-attn confirm {shlex.quote(study.config.name)} --trial {number}"


def size_text(size: int) -> str:
    """Bytes in MB, a million each."""
    return f"{size / 1e6:,.2f} MB"


def _facts_lines(study: Study, facts: ModelFacts, contents: Contents) -> list[str]:
    total = facts.trial.costs.get("total")
    parameters = "" if total is None else f", {total:,.0f} parameters"
    confirmed = facts.confirmation_text
    if confirmed is None:
        confirmed = f"not confirmed yet: {confirm_command(study, facts.trial.number)} does it"
    lines = [
        facts.comparison,
        f"this is {facts.seed_text}",
        confirmed,
        f"size: {size_text(contents.bytes)}{parameters}",
    ]
    if contents.check is not None:
        lines.append(f"checked against the model in fairseq: {contents.check}")
    return [f"{line[0].upper()}{line[1:]}." for line in lines]


def _usage(contents: Contents) -> list[str]:
    if contents.form == "safetensors":
        return _block("Load it:", LOAD_SAFETENSORS, "python")
    if contents.form == "ctranslate2":
        return _ctranslate2_usage(contents.data)
    data = contents.data
    if not data.languages:
        return []
    source, target = data.languages
    text = "" if data.sentencepiece_model.is_file() else ", tokenised as the training data"
    command = _command_text(interactive_command(data, data.folder / CHECKPOINT), contents)
    return _block(
        f"Translate {source} to {target}, one sentence a line{text}; lines that begin with D "
        "hold the score and the translation:",
        f"echo 'A sentence to translate.' | {command}",
    )


def _evaluation(study: Study, contents: Contents) -> list[str]:
    if contents.form not in WITH_DATA:
        return []
    data = contents.data
    command = _command_text(study.evaluation(data, data.folder / CHECKPOINT), contents)
    if contents.has_test:
        return _block("Evaluate it on the test set of its data set:", command)
    command = command.replace(" . ", f" {OWN_DATA} ", 1)
    what = f"the test set of a data set {OWN_DATA}, binarised with the dictionaries here:"
    return _block(f"Evaluate it on {what}", command)


def _ctranslate2_usage(data: PreparedData) -> list[str]:
    if not data.languages:
        return _block("Continue a text, in Python:", GENERATE_BY_CTRANSLATE2, "python")
    source, target = data.languages
    code = TRANSLATE_PIECES_BY_CTRANSLATE2
    if data.sentencepiece_model.is_file():
        code = TRANSLATE_BY_CTRANSLATE2
    return _block(f"Translate {source} to {target}, in Python:", code, "python")


def _block(words: str, code: str, language: str = "") -> list[str]:
    return ["", markdown_text(words), "", f"```{language}", code, "```"]


def _command_text(command: Sequence[str], contents: Contents) -> str:
    """A command as a line for a shell that is in the folder, with one thread."""
    words: list[str] = []
    for word in _without_plugin(command) if contents.form == "fairseq" else command:
        if word == str(plugin_folder()):
            words.append('"$(nas-attn plugin-dir)"')
        else:
            words.append(shlex.quote(word.replace(str(contents.data.folder), ".")))
    return f"OMP_NUM_THREADS=1 {' '.join(words)}"


def _without_plugin(command: Sequence[str]) -> list[str]:
    place = list(command).index("--user-dir")
    return [*command[:place], *command[place + 2 :]]


def folder_bytes(folder: Path, names: Sequence[str]) -> int:
    """Bytes of the files of a folder but those of some names."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.name not in names)
