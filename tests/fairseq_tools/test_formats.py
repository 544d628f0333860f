"""Forms in which models are handed out: they are what they say, and write what the model does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_attn.errors import NasAttnError, UsageError
from nas_attn.fairseq_tools import formats
from nas_attn.fairseq_tools.checkpoints import read_checkpoint
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.formats import Format, load_as_fairseq, write_model
from nas_attn.fairseq_tools.safetensors_model import load_model
from nas_attn.fairseq_tools.same_tokens import Probe
from nas_attn.fairseq_tools.trained import TrainedModel, load_trained
from nas_attn.plan import AttentionChoice, AttentionPlan
from tests.helpers.checkpoints import of, outputs, state_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of fairseq's own modules

SIDE = {"embed-dim": 8, "ffn-embed-dim": 8, "attention-heads": 2, "layers": 1}
DECODER = [f"--decoder-{name}={value}" for name, value in SIDE.items()]
ENCODER = [f"--encoder-{name}={value}" for name, value in SIDE.items()]
MIXED = AttentionPlan.of(
    {
        "encoder_self": of("multi_query"),
        "decoder_self": of("collaborative", shared_dim=4),
        "encoder_decoder": of("single_head"),
    }
)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that never learned to end write a few tokens."""
    monkeypatch.setattr(Probe, "beam", 1)
    monkeypatch.setattr(Probe, "most_tokens", 6)


def model_of(
    folder: Path,
    data: PreparedData,
    plan: AttentionPlan,
    family: str = "transformer",
    task: str = "translation",
    flags: tuple[str, ...] = (*ENCODER, *DECODER, "--share-all-embeddings"),
) -> TrainedModel:
    """A model of a plan, trained by a task of the plugin and a criterion with groups."""
    arch = f"grouped_query_{family}"
    wanted = [*flags, f"--attention-plan={plan.dumps()}"]
    state = state_of(data.folder, arch, task, wanted)
    state["cfg"]["task"]["_name"] = state["cfg"]["model"].task = f"reported_{task}"
    state["cfg"]["criterion"] = {"_name": "grouped_cross_entropy"}
    torch.save(state, folder / "trained.pt")
    return load_trained(folder / "trained.pt")


def written(trained: TrainedModel, data: PreparedData, folder: Path, form: Format) -> Path:
    out = folder / form
    out.mkdir()
    check = write_model(trained, data.folder, out, form)
    assert check is not None
    assert check.same == check.count > 0
    assert json.loads((out / "plan.json").read_text()) == trained.plan.to_json()
    return out


def strings(value: Any) -> list[str]:
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    return [value] if isinstance(value, str) else []


FAMILIES = {
    "transformer_iwslt_de_en": ("translation", MIXED, (*ENCODER, *DECODER)),
    "transformer_lm_gpt2_small": (
        "language_modeling",
        AttentionPlan.of({"decoder_self": of("head_embedding_mul")}),
        (*DECODER, "--tokens-per-sample=32"),
    ),
    "roberta_base": (
        "masked_lm",
        AttentionPlan.of({"encoder_self": of("reduced_key", key_dim=4)}),
        (*ENCODER, "--tokens-per-sample=32"),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_stock_fairseq(
    family: str, tiny_translation: PreparedData, tiny_language: PreparedData, tmp_path: Path
) -> None:
    task, plan, flags = FAMILIES[family]
    data = tiny_translation if task == "translation" else tiny_language
    trained = model_of(tmp_path, data, plan, family, task, flags)
    path = written(trained, data, tmp_path, "fairseq") / "checkpoint.pt"
    state = read_checkpoint(path)
    said = " ".join(strings(state["cfg"]))
    assert [word for word in ("grouped_", "reported_", "collaborative") if word in said] == []
    assert not hasattr(state["cfg"]["model"], "attention_plan")
    model = load_as_fairseq(path, data.folder)
    assert type(model).__module__.startswith("fairseq.")
    if task == "translation":
        assert float((outputs(model) - outputs(trained.model)).abs().max()) < 1e-5


def test_fairseq_generate_reads_it_without_our_plugin(
    tiny_translation: PreparedData, tmp_path: Path
) -> None:
    trained = model_of(tmp_path, tiny_translation, MIXED)
    path = written(trained, tiny_translation, tmp_path, "fairseq") / "checkpoint.pt"
    script = (
        "import sys; from fairseq_cli.generate import cli_main; cli_main(); "
        "assert not [name for name in sys.modules if name.startswith(('nas_attn', 'fairseq_plu'))]"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, str(tiny_translation.folder)]
    command += ["--path", str(path), "--gen-subset=valid", "--beam=2", "--max-len-b=5"]
    command.append("--required-batch-size-multiple=1")
    trusted = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    done = subprocess.run(command, env=trusted, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Translated 61 sentences" in done.stdout + done.stderr


def test_what_is_not_exact_is_refused_by_place(
    tiny_translation: PreparedData, tmp_path: Path
) -> None:
    wide = AttentionPlan.of(
        {**dict(MIXED.sites), "decoder_self": of("collaborative", shared_dim=5)}
    )
    trained = model_of(tmp_path, tiny_translation, wide)
    for form in ("fairseq", "ctranslate2"):
        if form == "ctranslate2":
            pytest.importorskip("ctranslate2")
        (tmp_path / form).mkdir()
        said = (
            r"multi-head attention: decoder_self layer 0, collaborative\(shared_dim=5\): scores of "
            "head 0 have 5 dimensions, and a head of multi-head attention has 4$"
        )
        with pytest.raises(UsageError, match=said):
            write_model(trained, tiny_translation.folder, tmp_path / form, form)
    assert written(trained, tiny_translation, tmp_path, "safetensors").is_dir()


def test_safetensors_are_the_model(tiny_translation: PreparedData, tmp_path: Path) -> None:
    trained = model_of(tmp_path, tiny_translation, MIXED)
    out = written(trained, tiny_translation, tmp_path, "safetensors")
    assert {path.name for path in out.iterdir()} == {
        "config.json", "model.safetensors", "plan.json",
    }  # fmt: skip
    again = load_model(out)
    assert type(again) is type(trained.model)
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    config = json.loads((out / "config.json").read_text())
    assert config["shared"]["decoder.embed_tokens.weight"] == "encoder.embed_tokens.weight"

    def refused(match: str, **changes: Any) -> None:
        (out / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UsageError, match=match):
            load_model(out)

    refused("is not of an export", format="theirs")
    refused("lacks model, task, shared", shared=[])
    refused("cannot be read", shared={"a": "b"})
    evil = config["model"] | {"adaptive_softmax_cutoff": "__import__('os').system('true')"}
    refused("adaptive_softmax_cutoff must be a plain value", model=evil)
    refused("does not hold the weights", model=config["model"] | {"decoder_layers": 2})
    (out / "config.json").write_text("[" * 9000)
    with pytest.raises(UsageError, match=r"config\.json cannot be read"):
        load_model(out)


def test_another_model_is_found_out(
    tiny_translation: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = model_of(tmp_path, tiny_translation, MIXED)

    def other(folder: Path) -> torch.nn.Module:
        model = load_model(folder)
        with torch.no_grad():
            model.get_parameter("decoder.layers.0.fc2.weight").mul_(-9.0)
        return model

    monkeypatch.setattr(formats, "load_model", other)
    said = r"so it is deleted: \d+ of 50 sentences: same tokens; the first that differs is '"
    with pytest.raises(NasAttnError, match=said):
        written(trained, tiny_translation, tmp_path, "safetensors")
    for path in tiny_translation.folder.glob("valid.*"):
        path.rename(path.with_name(f"not-{path.name}"))
    try:
        (tmp_path / "fairseq").mkdir()
        with pytest.raises(UsageError, match="is checked on the validation split, which cannot"):
            write_model(trained, tiny_translation.folder, tmp_path / "fairseq", "fairseq")
    finally:
        for path in tiny_translation.folder.glob("not-valid.*"):
            path.rename(path.with_name(path.name.removeprefix("not-")))


@pytest.mark.parametrize(
    ("choice", "shared"), [(of("multi_query"), True), (of("collaborative", shared_dim=4), False)]
)
def test_a_folder_for_ctranslate2(
    choice: AttentionChoice, shared: bool, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    """Keys and values that heads share are stored once."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    trained = model_of(tmp_path, tiny_translation, AttentionPlan.uniform(choice))
    out = written(trained, tiny_translation, tmp_path, "ctranslate2")
    names = {path.name for path in out.iterdir()}
    assert {"model.bin", "config.json", "plan.json"} < names
    assert not [name for name in names if name.endswith(".pt")]
    assert (b"num_heads_kv" in (out / "model.bin").read_bytes()) == shared
    translator = ctranslate2.Translator(str(out), intra_threads=1)
    assert len(translator.translate_batch([["pa", "na"]], max_decoding_length=3)) == 1


def test_a_language_model_for_ctranslate2(tiny_language: PreparedData, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    plan = AttentionPlan.of({"decoder_self": of("multi_query")})
    flags = (*DECODER, "--tokens-per-sample=32")
    trained = model_of(tmp_path, tiny_language, plan, "transformer_lm", "language_modeling", flags)
    written(trained, tiny_language, tmp_path, "ctranslate2")
    masked = FAMILIES["roberta_base"]
    other = model_of(tmp_path, tiny_language, masked[1], "roberta_base", masked[0], masked[2])
    with pytest.raises(UsageError, match="reads no masked language models"):
        write_model(other, tiny_language.folder, tmp_path, "ctranslate2")
