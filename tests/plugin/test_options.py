"""fairseq's own options with our architectures: each one works or is refused in words."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import options, tasks
from fairseq.data import indexed_dataset
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq_cli import eval_lm, generate, interactive
from omegaconf import OmegaConf

from nas_attn.errors import DataError, PlanError
from nas_attn.fairseq_tools.checkpoints import read_checkpoint
from nas_attn.fairseq_tools.data import PreparedData, point_at
from nas_attn.fairseq_tools.models import blank_dictionary, parse_architecture
from nas_attn.plan import AttentionPlan

TINY = [
    "--encoder-layers=2", "--decoder-layers=2", "--encoder-embed-dim=16", "--decoder-embed-dim=16",
    "--encoder-ffn-embed-dim=8", "--decoder-ffn-embed-dim=8", "--encoder-attention-heads=4",
    "--decoder-attention-heads=4",
]  # fmt: skip
TINY_LM = [flag for flag in TINY if "encoder" not in flag]
TINY_ROBERTA = [*(flag for flag in TINY if "decoder" not in flag), "--max-positions=16"]
MIXED = AttentionPlan.read(
    '{"encoder_self": [{"scheme": "collaborative", "shared_dim": 4}, "single_head"],'
    ' "decoder_self": ["head_embedding_mul", "multi_query"],'
    ' "encoder_decoder": [{"scheme": "grouped_query", "num_groups": 2}, "shared_key_value"]}'
)
TRANSLATION = [
    "--share-decoder-input-output-embed",
    "--share-all-embeddings",
    "--merge-src-tgt-embed",
    "--encoder-normalize-before --decoder-normalize-before --no-decoder-final-norm",
    "--layernorm-embedding --no-scale-embedding --activation-fn=gelu",
    "--encoder-learned-pos --decoder-learned-pos",
    "--no-token-positional-embeddings",
    "--encoder-layerdrop=0.5 --decoder-layerdrop=0.5",
    "--checkpoint-activations",
    "--offload-activations",
    "--cross-self-attention",
    "--cross-self-attention --no-cross-attention",
    "--adaptive-softmax-cutoff=10,20 --adaptive-softmax-dropout=0.1",
    "--decoder-output-dim=12",
    "--quant-noise-scalar=0.5",
    "--attention-dropout=0.1 --activation-dropout=0.1",
    "--max-source-positions=8 --max-target-positions=8",
    "--export",
]
LANGUAGE_MODELS = [
    "--share-decoder-input-output-embed",
    "--adaptive-input --adaptive-input-cutoff=10,20 --adaptive-softmax-cutoff=10,20 "
    "--tie-adaptive-weights --tie-adaptive-proj",
    "--character-embeddings --character-filters=[(1,4),(2,4)] --character-embedding-dim=4",
    "--scale-fc --scale-attn --scale-heads --scale-resids",
    "--no-decoder-final-norm --layernorm-embedding --decoder-learned-pos",
    "--no-token-positional-embeddings --no-scale-embedding",
    "--decoder-layerdrop=0.5 --checkpoint-activations",
    "--decoder-input-dim=8 --decoder-output-dim=12",
]
ROBERTA = [
    "--encoder-normalize-before --layernorm-embedding",
    "--untie-weights-roberta",
    "--encoder-layerdrop=0.5",
    "--spectral-norm-classification-head",
    "--activation-fn=relu --pooler-activation-fn=relu --pooler-dropout=0.1",
    "--quant-noise-scalar=0.5",
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fairseq's modules
        yield


def build(arch: str, flags: list[str]) -> Any:
    args = parse_architecture(arch, flags)
    task = Namespace(source_dictionary=blank_dictionary(30), target_dictionary=blank_dictionary(30))
    torch.manual_seed(1)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, task)


def mixed(family: str) -> str:
    sites = {"transformer_lm": ["decoder_self"], "roberta": ["encoder_self"]}.get(family)
    plan = {site: choice for site, choice in MIXED.to_json().items() if not sites or site in sites}
    return f"--attention-plan={AttentionPlan.from_json(plan).dumps()}"


CASES = [
    *(("transformer", TINY, option) for option in TRANSLATION),
    *(("transformer_lm", TINY_LM, option) for option in LANGUAGE_MODELS),
    *(("roberta", TINY_ROBERTA, option) for option in ROBERTA),
]


@pytest.mark.parametrize(("family", "sizes", "option"), CASES, ids=[case[2] for case in CASES])
def test_an_option_of_the_model(family: str, sizes: list[str], option: str) -> None:
    """Output, gradients and the weights' way back into a model."""
    flags = [*sizes, mixed(family), *option.split()]
    model = build(f"multi_head_{family}", flags).train()
    tokens = torch.tensor([[5, 6, 7, 2], [1, 8, 9, 2]])
    inputs = (tokens,) if family != "transformer" else (tokens, torch.tensor([4, 3]), tokens)
    output = model(*inputs)[0]
    output.square().mean().backward()
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    again = build(f"multi_head_{family}", flags).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        results = [m(*inputs)[0] for m in (model.eval(), again)]
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    ("family", "option", "message"),
    [
        ("transformer", "--quant-noise-pq=0.1", "quant-noise-pq"),
        ("transformer", "--encoder-xformers-att-config={}", "plan chooses"),
        ("transformer_lm", "--decoder-xformers-att-config={}", "plan chooses"),
        ("transformer_lm", "--quant-noise-pq=0.1", "quant-noise-pq"),
        ("roberta", "--mha-heads-to-keep=2", "prune stock heads only"),
        ("transformer", "--full-context-alignment", "no flag --full-context-alignment"),
    ],
)
def test_an_option_that_is_refused(family: str, option: str, message: str) -> None:
    sizes = {"transformer": TINY, "transformer_lm": TINY_LM, "roberta": TINY_ROBERTA}[family]
    with pytest.raises(ValueError, match=message):
        build(f"multi_head_{family}", [*sizes, option])


@pytest.mark.parametrize(
    ("family", "name", "flags"),
    [
        ("transformer_lm", "character_filters", ["--character-embeddings"]),
        ("transformer_lm", "adaptive_input_cutoff", ["--adaptive-input"]),
        ("transformer_lm", "adaptive_softmax_cutoff", []),
        ("transformer", "adaptive_softmax_cutoff", []),
    ],
)
def test_a_checkpoint_runs_no_code(
    family: str, name: str, flags: list[str], tmp_path: Path
) -> None:
    """fairseq evaluates some arguments of a model as Python."""
    args = parse_architecture(
        f"multi_head_{family}", [*(TINY_LM if family == "transformer_lm" else TINY), *flags]
    )
    code = f"[__import__('pathlib').Path({str(tmp_path / 'ran')!r}).write_text('x')]"
    setattr(args, name, code)
    task = Namespace(source_dictionary=blank_dictionary(30), target_dictionary=blank_dictionary(30))
    with pytest.raises(PlanError, match=f"{name} must be a plain value"):
        ARCH_MODEL_REGISTRY[args.arch].build_model(args, task)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["_name", "task"])
def test_a_checkpoint_chooses_no_task_that_runs_code(key: str, tmp_path: Path) -> None:
    task = Namespace(**{"_name": "translation", key: "multilingual_translation"})
    with pytest.raises(DataError, match="of the task multilingual_translation"):
        point_at(task, tmp_path)


def test_files_that_a_checkpoint_names() -> None:
    """A plan's file is not opened, and a file of embeddings must be a regular one."""
    for name, value, message in (
        ("attention_plan", "/dev/zero", "counts only on the command line"),
        ("encoder_embed_path", "/dev/zero", "no regular file"),
    ):
        args = parse_architecture("multi_head_transformer", TINY)
        setattr(args, name, value)
        task = Namespace(
            source_dictionary=blank_dictionary(30), target_dictionary=blank_dictionary(30)
        )
        with pytest.raises(PlanError, match=message):
            ARCH_MODEL_REGISTRY[args.arch].build_model(args, task)


@pytest.mark.parametrize("form", [dict, lambda **values: Namespace(**values)])
def test_a_checkpoint_is_read_without_the_files_that_it_names(form: Any, tmp_path: Path) -> None:
    name = "multi_head_transformer"
    model = form(_name=name, attention_plan="{}", encoder_embed_path="/dev/zero")
    state = {"model": {"weight": torch.zeros(1)}, "cfg": {"model": model, "task": {}}}
    torch.save(state, tmp_path / "c.pt")
    arguments = read_checkpoint(tmp_path / "c.pt")["cfg"]["model"]
    assert arguments.encoder_embed_path is None
    assert arguments._name == name


def test_embeddings_from_a_file_are_in_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "vectors.txt"
    file.write_text("1 16\ntype3 " + " ".join(["0.5"] * 16) + "\n")
    args = parse_architecture("multi_head_transformer", [*TINY, f"--encoder-embed-path={file}"])
    dictionary = blank_dictionary(30)
    task = Namespace(source_dictionary=dictionary, target_dictionary=blank_dictionary(30))
    model = ARCH_MODEL_REGISTRY[args.arch].build_model(args, task)
    assert (model.encoder.embed_tokens.weight[dictionary.index("type3")] == 0.5).all()
    assert args.encoder_embed_path is None  # so it loads where the file is gone


def checkpoint(folder: Path, data: Path, arch: str, flags: list[str], seed: int) -> Path:
    """An untrained checkpoint of an architecture, as fairseq-train writes it."""
    words = [str(data), f"--arch={arch}", *flags, "--share-decoder-input-output-embed"]
    args = options.parse_args_and_arch(options.get_training_parser(), words)
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(seed)
    model = task.build_model(cfg.model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    path = folder / f"{arch}{seed}.pt"
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": model.state_dict(),
        "optimizer_history": [
            {"criterion_name": "C", "optimizer_name": "O", "lr_scheduler_state": {},
             "num_updates": 0}
        ],
        "extra_state": {"train_iterator": {"epoch": 1}},
    }  # fmt: skip
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def translators(tiny_translation: PreparedData, tmp_path_factory: Any) -> list[Path]:
    """Two checkpoints of a plan of many schemes."""
    folder = tmp_path_factory.mktemp("translators")
    flags = ["--task=translation", *TINY, mixed("transformer")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            checkpoint(folder, tiny_translation.folder, "multi_head_transformer", flags, seed)
            for seed in (1, 2)
        ]


def run(main: Any, parser: Any, words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A command of fairseq in this process; what it printed and logged."""
    printed = io.StringIO()
    handler = logging.StreamHandler(printed)
    logging.getLogger().addHandler(handler)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    try:
        args = options.parse_args_and_arch(parser, words)
        with contextlib.redirect_stdout(printed):
            main(convert_namespace_to_omegaconf(args))
    finally:
        logging.getLogger().removeHandler(handler)
    return printed.getvalue()


@pytest.mark.parametrize(
    "option",
    [
        "--diverse-beam-groups=2 --diverse-beam-strength=0.5 --max-tokens=9999",
        "--diversity-rate=0.5 --no-repeat-ngram-size=2",
        "--score-reference",
        "--prefix-size=1 --print-alignment=soft --match-source-len",
        "--print-alignment=hard --skip-invalid-size-inputs-valid-test --max-source-positions=12",
        "--sampling --sampling-topk=5 --nbest=4 --retain-dropout",
        "--num-batch-buckets=2",
        "ensemble",
    ],
)
def test_an_option_of_generate(
    option: str,
    translators: list[Path],
    tiny_translation: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = str(translators[0])
    if option == "ensemble":
        paths, option = f"{translators[0]}:{translators[1]}", "--beam=4"
    words = [str(tiny_translation.folder), f"--path={paths}", "--beam=4", "--max-len-b=6",
             "--required-batch-size-multiple=1", "--max-tokens=400", *option.split()]  # fmt: skip
    printed = run(generate.main, options.get_generation_parser(), words, monkeypatch)
    hypotheses = [line for line in printed.splitlines() if line.startswith("H-")]
    assert len(hypotheses) >= 50
    if "alignment" in option:
        assert sum(line.startswith("A-") for line in printed.splitlines()) == len(hypotheses)


def test_constrained_decoding(
    translators: list[Path],
    tiny_translation: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """fairseq-interactive must bring in the words that stand behind a tab."""
    source, target = tiny_translation.languages
    sides = (tiny_translation.folder / f"dict.{side}.txt" for side in (source, target))
    first, wanted = (side.read_text().splitlines()[5].split()[0] for side in sides)
    text = tmp_path / "text"
    text.write_text(f"{first} {first}\t{wanted}\n{first}\t{wanted}\n")
    words = [str(tiny_translation.folder), f"--path={translators[0]}", "--beam=4",
             "--max-len-b=6", "--constraints", f"--input={text}", "--buffer-size=2"]  # fmt: skip
    parser = options.get_interactive_generation_parser()
    printed = run(interactive.main, parser, words, monkeypatch)
    hypotheses = [line for line in printed.splitlines() if line.startswith("H-")]
    assert len(hypotheses) == 2
    assert all(wanted in line.split("\t")[2].split() for line in hypotheses)


@pytest.mark.parametrize("mode", ["complete_doc", "eos"])
def test_evaluation_of_a_language_model(
    mode: str,
    tiny_language: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = ["--task=language_modeling", "--tokens-per-sample=64", *TINY_LM]
    path = checkpoint(tmp_path, tiny_language.folder, "collaborative_transformer_lm", flags, seed=1)
    words = [str(tiny_language.folder), f"--path={path}", "--max-tokens=512",
             "--required-batch-size-multiple=1", f"--sample-break-mode={mode}"]  # fmt: skip
    printed = run(eval_lm.main, options.get_eval_lm_parser(), words, monkeypatch)
    assert "Perplexity" in printed


def test_alignments_from_a_file(tiny_translation: PreparedData, tmp_path: Path) -> None:
    """--load-alignments, with the criterion that learns from them."""
    for file in tiny_translation.folder.glob("*.*"):
        (tmp_path / file.name).symlink_to(file)
    source, target = tiny_translation.languages
    stem = tmp_path / f"valid.align.{source}-{target}"
    builder = indexed_dataset.make_builder(f"{stem}.bin", impl="mmap", vocab_size=64)
    for _ in range(61):
        builder.add_item(torch.tensor([0, 0]))
    builder.finalize(f"{stem}.idx")
    words = [str(tmp_path), "--arch=multi_head_transformer", "--task=translation", *TINY,
             mixed("transformer"), "--load-alignments", "--max-tokens=400",
             "--criterion=label_smoothed_cross_entropy_with_alignment"]  # fmt: skip
    args = options.parse_args_and_arch(options.get_training_parser(), words)
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    task.load_dataset("valid")
    model, criterion = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
    dataset = task.dataset("valid")
    sample = dataset.collater([dataset[index] for index in range(4)])
    loss, _, log = criterion(model, sample)
    loss.backward()
    assert np.isfinite(float(log["alignment_loss"]))
