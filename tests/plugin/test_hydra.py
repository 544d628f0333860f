"""fairseq-hydra-train: the same models, criterions and checkpoints as fairseq-train's."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fairseq
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.criterions import build_criterion
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.models import build_model
from fairseq.tasks import setup_task
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from nas_attn.attention import SCHEMES
from nas_attn.errors import PlanError
from nas_attn.fairseq_tools.checkpoints import read_checkpoint
from nas_attn.fairseq_tools.convert import convert_checkpoint
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.models import blank_dictionary, parse_architecture
from nas_attn.fairseq_tools.prune import prune_checkpoint
from nas_attn.plan import SITES, AttentionChoice, AttentionPlan
from tests.helpers.paths import ROOT

PLUGIN = f"common.user_dir={ROOT / 'fairseq_plugin'}"
SIZES = {
    "transformer": ["encoder_layers=2", "decoder_layers=1", "encoder_embed_dim=16",
                    "decoder_embed_dim=24", "encoder_ffn_embed_dim=8", "decoder_ffn_embed_dim=8",
                    "encoder_attention_heads=4", "decoder_attention_heads=2"],
    "transformer_lm": ["decoder_layers=2", "decoder_embed_dim=16", "decoder_ffn_embed_dim=8",
                       "decoder_attention_heads=4"],
    "roberta": ["encoder_layers=2", "encoder_embed_dim=16", "encoder_ffn_embed_dim=8",
                "encoder_attention_heads=4"],
}  # fmt: skip
TASKS = {
    "transformer": ["task=translation", "task.max_source_positions=40"],
    "transformer_lm": ["task=language_modeling", "task.tokens_per_sample=32"],
    "roberta": ["task=masked_lm", "task.tokens_per_sample=32"],
}


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hydra, omegaconf and torch
        yield


def configured(overrides: list[str], *, plugin_is_known: bool = True) -> DictConfig:
    """What fairseq-hydra-train hands to its training, of command-line overrides.

    Args:
        overrides: of the command line.
        plugin_is_known: before the training; else its user_dir is imported when it begins.
    """
    GlobalHydra.instance().clear()
    hydra_init()
    folder = Path(fairseq.__file__).parent / "config"
    with initialize_config_dir(str(folder), version_base="1.1"):
        cfg = compose("config", overrides=overrides)
    if plugin_is_known:
        add_defaults(cfg)
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))
    OmegaConf.set_struct(cfg, True)
    return cfg


def built(family: str, overrides: list[str], scheme: str = "multi_head") -> tuple[Any, DictConfig]:
    sizes = [f"+model.{size}" for size in SIZES[family]]
    cfg = configured([*TASKS[family], f"+model._name={scheme}_{family}", *sizes, *overrides])
    dictionary = blank_dictionary(30)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return build_model(cfg.model, task), cfg


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("collaborative", {"shared_dim": 4}),
        ("grouped_head", {"num_groups": 2, "keep": "pillars", "alpha": 0.25}),
        ("single_head", {"narrow_output": True}),
    ],
)
def test_models_have_the_options_asked_for(
    scheme: str, options: dict[str, Any], family: str
) -> None:
    """The module has them, the checkpoint says them, and flags give the same model."""
    overrides = [f"+model.{name}={value}" for name, value in options.items()]
    model, cfg = built(family, overrides, scheme)
    attention = [m.attention for m in model.modules() if hasattr(m, "encoder_decoder_attention")]
    assert attention
    for name, value in options.items():
        if hasattr(attention[0], name):
            assert {getattr(module, name) for module in attention} == {value}
    for choices in dict(AttentionPlan.parse(cfg.model.attention_plan).sites).values():
        assert [(c.scheme, dict(c.options)) for c in choices] == [(scheme, options)]

    flags = [f"--{size.replace('_', '-')}" for size in SIZES[family]]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        flags.append(flag if value is True else f"{flag}={value}")
    flags += [f"--{word.split('.')[1].replace('_', '-')}" for word in TASKS[family] if "." in word]
    args = parse_architecture(f"{scheme}_{family}", flags)
    dictionary = blank_dictionary(30)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    by_flags = build_model(args, task)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, by_flags)]
    assert shapes[0] == shapes[1]
    assert model.max_positions() == by_flags.max_positions()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+model.shared_dims=4"], "collaborative_transformer has no such argument; do you mean"),
        (["+model.num_groups=4"], "collaborative_transformer has no such argument"),
        (["+model.encoder.layers=4"], "model.encoder: .* do you mean encoder_layers"),
        (["+model.shared_dim=four"], "shared_dim must be a whole number, but is 'four'"),
        (["+model.attention_plan=/dev/zero"], "counts only on the command line of a training"),
        (["+model.attention_plan={encoder_self:[]}"], "has no choice"),
        (["+model.attention_plan=3"], "must be JSON text"),
    ],
)
def test_what_the_model_lacks_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        built("transformer", overrides, "collaborative")


def test_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping, or the name of a file on the command line; the checkpoint has the plan."""
    expected = AttentionPlan.read('{"encoder_self": {"scheme": "collaborative", "shared_dim": 3}}')
    mapping = "+model.attention_plan={encoder_self:{scheme:collaborative,shared_dim:3}}"
    file = tmp_path / "plan.json"
    file.write_text(expected.dumps())
    named = f"+model.attention_plan={file}"
    for override in (mapping, named):
        monkeypatch.setattr(sys, "argv", ["fairseq-hydra-train", override])
        model, cfg = built("transformer", [override])
        widths = [layer.self_attn.attention.shared_dim for layer in model.encoder.layers]
        assert widths == [3, 3]
        assert AttentionPlan.parse(cfg.model.attention_plan).layers("encoder_self", 2) == (
            expected.layers("encoder_self", 2)
        )
    for special in ("/dev/zero", "/dev/stdin"):
        override = f"+model.attention_plan={special}"
        monkeypatch.setattr(sys, "argv", ["fairseq-hydra-train", override])
        with pytest.raises(PlanError, match=r"no regular file|No such"):
            built("transformer", [override])


def test_criterions_have_the_options_asked_for() -> None:
    task = SimpleNamespace(
        begin_epoch=None,
        optimizer_step=None,
        get_batch_iterator=None,
        target_dictionary=blank_dictionary(30),
    )
    for choice in (
        ["criterion._name=grouped_label_smoothed_cross_entropy"],
        ["criterion=grouped_label_smoothed_cross_entropy"],  # hydra.searchpath has the plugin
    ):
        is_known = "_name" not in choice[0]
        plus = "" if is_known else "+"
        options = ["label_smoothing=0.25", "vote_at_update=3", "vote_updates=2", "group_loss=mean"]
        overrides = [*choice, *(f"{plus}criterion.{option}" for option in options)]
        cfg = configured(overrides, plugin_is_known=is_known)
        criterion = build_criterion(cfg.criterion, task)
        assert criterion.eps == 0.25
        assert criterion.takes_mean
        assert (criterion.voting.at_update, criterion.voting.num_updates) == (3, 2)


def hydra_train(overrides: list[str], folder: Path) -> str:
    """Run fairseq-hydra-train in a folder of its own; returns what it printed."""
    common = [
        PLUGIN, "dataset.max_tokens=512", "dataset.num_workers=0", "optimizer=adam",
        "dataset.required_batch_size_multiple=1", "optimization.max_update=3",
        "optimization.lr=[0.003]", f"checkpoint.save_dir={folder}",
        "checkpoint.no_epoch_checkpoints=true",
    ]  # fmt: skip
    command = [sys.executable, "-m", "fairseq_cli.hydra_train", *common, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def loads(path: Path, data: Path) -> Any:
    """The model of a checkpoint, as fairseq-generate and fairseq-eval-lm load it."""
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": str(data)})
    return models[0].eval()


@pytest.mark.slow
def test_translation_from_training_to_pruning_and_conversion(
    tiny_translation: PreparedData, tmp_path: Path
) -> None:
    """A vote in fairseq-hydra-train; its checkpoint loads, is pruned and converted."""
    sizes = [f"+model.{size}" for size in SIZES["transformer"]]
    printed = hydra_train(
        ["hydra.searchpath=[pkg://fairseq_plugin]", "task=translation",
         f"task.data={tiny_translation.folder}", "model=grouped_head_transformer",
         "+model.num_groups=2", "+model.keep=pillars", *sizes,
         "criterion=grouped_cross_entropy", "criterion.vote_at_update=1",
         "criterion.vote_updates=1"],
        tmp_path,
    )  # fmt: skip
    assert "of each attention module stay [2, 2, 2, 2]" in printed
    last, small = tmp_path / "checkpoint_last.pt", tmp_path / "small.pt"
    tokens = torch.tensor([[5, 6, 7, 2]])
    pruned = prune_checkpoint(last, small)
    assert pruned.parts["encoder_self.1"] == (2, 4)
    outputs = [loads(path, tiny_translation.folder)(tokens, torch.tensor([4]), tokens)[0]
               for path in (last, small)]  # fmt: skip
    torch.testing.assert_close(outputs[0], outputs[1])
    plan = AttentionPlan.read('{"decoder_self": "multi_query"}')
    convert_checkpoint(small, plan, tmp_path / "converted.pt", force=True)
    converted = loads(tmp_path / "converted.pt", tiny_translation.folder)
    assert type(converted.decoder.layers[0].self_attn.attention).__name__ == "MultiQueryAttention"


@pytest.mark.slow
def test_training_in_bfloat16(tiny_translation: PreparedData, tmp_path: Path) -> None:
    """Every scheme, on whatever device there is; fairseq-train's --bf16 is for TPUs only."""
    plan = AttentionPlan.of(
        {site: [AttentionChoice(scheme) for scheme in SCHEMES] for site in SITES}
    )
    plan_file = tmp_path / "plan.json"
    plan_file.write_text(plan.dumps())
    sizes = [
        f"+model.{side}_{name}={value}"
        for side in ("encoder", "decoder")
        for name, value in {
            "layers": len(SCHEMES), "embed_dim": 16, "ffn_embed_dim": 16, "attention_heads": 4,
        }.items()
    ]  # fmt: skip
    hydra_train(
        ["common.bf16=true", "task=translation", f"task.data={tiny_translation.folder}",
         "+model._name=multi_head_transformer", *sizes, f"+model.attention_plan={plan_file}"],
        tmp_path,
    )  # fmt: skip
    weights = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)["model"].values()
    assert all(weight.isfinite().all() for weight in weights)
    # fairseq writes them as float32.
    assert all(torch.equal(weight, weight.bfloat16().to(weight)) for weight in weights)


def test_a_checkpoint_of_a_language_model_loads(
    tiny_language: PreparedData, tmp_path: Path
) -> None:
    """As fairseq-hydra-train writes it: its model's arguments are a mapping."""
    sizes = [f"+model.{size}" for size in SIZES["transformer_lm"]]
    cfg = configured(
        [*TASKS["transformer_lm"], f"task.data={tiny_language.folder}",
         "+model._name=collaborative_transformer_lm", "+model.shared_dim=4", *sizes]
    )  # fmt: skip
    model = setup_task(cfg.task).build_model(cfg.model)
    history = {"criterion_name": "C", "optimizer_name": "O", "lr_scheduler_state": {}}
    state = {
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": model.state_dict(),
        "optimizer_history": [{**history, "num_updates": 0}],
        "extra_state": {"train_iterator": {"epoch": 1}},
    }
    last = tmp_path / "checkpoint_last.pt"
    torch.save(state, last)
    model = loads(last, tiny_language.folder)
    assert [layer.self_attn.attention.shared_dim for layer in model.decoder.layers] == [4, 4]
    assert model.max_positions() == 32
    stored = read_checkpoint(last)["cfg"]["model"]
    assert AttentionPlan.parse(stored.attention_plan).layers("decoder_self", 1)[0].options == (
        ("shared_dim", 4),
    )
