"""Checkpoints of fairseq's own models become checkpoints of ours, for fairseq to load."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nas_attn.errors import NasAttnError, PlanError
from nas_attn.fairseq_tools.arguments import parse_arguments
from nas_attn.fairseq_tools.convert import (
    Losses,
    convert_checkpoint,
    convert_trained,
    load_trained,
)
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.plan import AttentionChoice, AttentionPlan
from tests.helpers.checkpoints import written

WIDTH, HEADS = 16, 4
SIDE = {"embed-dim": WIDTH, "ffn-embed-dim": 24, "attention-heads": HEADS, "layers": 2}
FLAGS = {
    side: [f"--{side}-{name}={value}" for name, value in SIDE.items()]
    for side in ("encoder", "decoder")
}
MODELS = {
    "transformer": ("translation", [*FLAGS["encoder"], *FLAGS["decoder"], "--max-tokens=512"]),
    "transformer_iwslt_de_en": (
        "translation",
        [*FLAGS["encoder"], *FLAGS["decoder"], "--share-all-embeddings", "--max-tokens=512"],
    ),
    "transformer_lm": (
        "language_modeling",
        [*FLAGS["decoder"], "--tokens-per-sample=64", "--max-tokens=512"],
    ),
    "roberta": ("masked_lm", [*FLAGS["encoder"], "--tokens-per-sample=64", "--max-tokens=512"]),
}
of = AttentionChoice.of
FULL = (
    of("multi_head"),
    of("collaborative", shared_dim=WIDTH),
    of("collaborative", shared_dim=WIDTH, content_bias=True),
    of("reduced_key", key_dim=WIDTH),
    of("grouped_query", num_groups=HEADS),
    of("grouped_head"),
)


def save_stock(arch: str, data: Path, path: Path) -> nn.Module:
    """A checkpoint as fairseq-train writes it, of fairseq's own attention, far from its start."""
    from fairseq import tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    task_name, flags = MODELS[arch]
    args = parse_arguments(arch, ["--task", task_name, *flags])
    args.data = str(data)
    config = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(config.task)
    torch.manual_seed(3)
    model: nn.Module = task.build_model(config.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_attn" in name:
                nn.init.normal_(parameter, std=0.3)
    torch.save(written(config, model), path)
    return model.eval()


def folder_of(arch: str, translation: PreparedData, language: PreparedData) -> Path:
    return (translation if MODELS[arch][0] == "translation" else language).folder


def load_as_fairseq(path: Path, data: Path) -> nn.Module:
    from fairseq import checkpoint_utils

    models, _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(path)], arg_overrides={"data": str(data)}
    )
    model: nn.Module = models[0]
    return model.eval()


def inputs_of(arch: str) -> dict[str, Any]:
    torch.manual_seed(5)
    tokens = torch.randint(4, 40, (3, 9))
    if arch.startswith("transformer_lm") or arch == "roberta":
        return {"src_tokens": tokens}
    tokens[1, 6:] = 1  # padding
    previous = torch.randint(4, 40, (3, 7))
    return {
        "src_tokens": tokens,
        "src_lengths": (tokens != 1).sum(1),
        "prev_output_tokens": previous,
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arch", MODELS)
def test_full_width_equals_the_original(
    arch: str, tiny_translation: PreparedData, tiny_language: PreparedData, tmp_path: Path
) -> None:
    data = folder_of(arch, tiny_translation, tiny_language)
    stock = save_stock(arch, data, tmp_path / "stock.pt")
    sites = load_trained(tmp_path / "stock.pt").layers()
    for choice in FULL:
        plan = AttentionPlan.uniform(choice, tuple(sites))
        convert_checkpoint(tmp_path / "stock.pt", plan, tmp_path / "out.pt")
        ours = load_as_fairseq(tmp_path / "out.pt", data)
        assert difference(stock, ours, arch) < 1e-5, choice
        # In double precision beside multi-head attention of ours: fairseq's own takes the softmax
        # in single.
        exact, reference = (load_trained(tmp_path / "stock.pt") for _ in range(2))
        exact.model.double()
        convert_trained(exact, plan, {})
        assert difference(reference.model.double(), exact.model, arch) < 1e-10, choice


def difference(one: nn.Module, other: nn.Module, arch: str) -> float:
    with torch.no_grad():
        left, right = (model(**inputs_of(arch))[0] for model in (one, other))
    return float((left - right).abs().max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arch", ["transformer_iwslt_de_en", "transformer_lm", "roberta"])
def test_with_data_it_says_what_is_lost_and_loses_less(
    arch: str,
    tiny_translation: PreparedData,
    tiny_language: PreparedData,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = folder_of(arch, tiny_translation, tiny_language)
    save_stock(arch, data, tmp_path / "stock.pt")
    site = next(iter(load_trained(tmp_path / "stock.pt").layers()))
    plan = AttentionPlan.of({site: [of("multi_query"), of("collaborative", shared_dim=8)]})
    found = convert_checkpoint(tmp_path / "stock.pt", plan, tmp_path / "out.pt", data=data)
    assert [module.place for module in found.modules] == [f"{site}.0", f"{site}.1"]
    for module in found.modules:
        assert module.errors is not None
        assert 0.0 < module.errors.outputs < 1.0
    assert found.losses is not None
    assert found.parameters[1] < found.parameters[0]
    assert "by weights alone" not in caplog.text
    blind = convert_checkpoint(tmp_path / "stock.pt", plan, tmp_path / "blind.pt")
    assert "collaborative attention of 1 module by weights alone" in caplog.text
    assert blind.losses is None
    model = load_as_fairseq(tmp_path / "out.pt", data)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == found.parameters[1]
    again = load_trained(tmp_path / "out.pt")
    assert again.plan.layers(site, 2) == plan.layers(site, 2)
    assert again.state["last_optimizer_state"] is None


@pytest.mark.filterwarnings("ignore")
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    tiny_translation: PreparedData,
    tiny_language: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stock, out = tmp_path / "stock.pt", tmp_path / "out.pt"
    save_stock("transformer", tiny_translation.folder, stock)
    out.write_bytes(b"what was there before")

    def refused(
        match: str, plan: AttentionPlan, path: Path = stock, data: Path | None = None
    ) -> None:
        with pytest.raises((NasAttnError, PlanError), match=match):
            convert_checkpoint(path, plan, out, data=data)
        assert out.read_bytes() == b"what was there before"
        assert not list(tmp_path.glob("*.partial"))

    good = AttentionPlan.of({"decoder_self": of("multi_query")})
    three = [of("multi_query"), of("multi_head"), of("multi_query")]
    refused("3 choices given for 2 layers", AttentionPlan.of({"decoder_self": three}))
    wide = of("grouped_query", num_groups=3)
    refused("decoder_self.0: .*num_groups must divide", AttentionPlan.of({"decoder_self": wide}))
    added = AttentionPlan.of({"encoder_self": of("head_embedding_add")})
    refused("cannot inherit", added)
    refused("is no data set for this model", good, data=tiny_language.folder)
    refused("there is no checkpoint", good, tmp_path / "missing.pt")
    (tmp_path / "half.pt").write_bytes(stock.read_bytes()[:5000])
    refused("is no checkpoint that can be read", good, tmp_path / "half.pt")
    state = torch.load(stock, weights_only=True)
    state["cfg"]["model"].arch = state["cfg"]["model"]._name = "lstm"
    torch.save(state, tmp_path / "lstm.pt")
    refused("of the architecture lstm", good, tmp_path / "lstm.pt")
    state = torch.load(stock, weights_only=True)
    del state["model"]["encoder.layers.1.self_attn.q_proj.weight"]
    torch.save(state, tmp_path / "lacking.pt")
    refused("does not hold the weights", good, tmp_path / "lacking.pt")

    def full(state: Any, file: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    refused("No space left", good)


def test_the_error_of_a_change_is_that_of_a_ratio_of_pairs() -> None:
    """By the jackknife, which knows nothing of the formula."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, 30, (400,), generator=generator).tolist()
    before = [8.0 * count + float(torch.randn((), generator=generator)) for count in tokens]
    after = [
        b + 0.2 * count + float(torch.randn((), generator=generator))
        for b, count in zip(before, tokens, strict=True)
    ]
    change, error = Losses(after, tokens).change_from(Losses(before, tokens))
    assert change == pytest.approx(0.2, abs=4 * error)
    left_out = []
    for place in range(len(tokens)):
        rest = [index for index in range(len(tokens)) if index != place]
        total = sum(after[index] - before[index] for index in rest)
        left_out.append(total / sum(tokens[index] for index in rest))
    mean = sum(left_out) / len(left_out)
    count = len(left_out)
    jackknife = ((count - 1) / count * sum((x - mean) ** 2 for x in left_out)) ** 0.5
    assert error == pytest.approx(jackknife, rel=0.02)
