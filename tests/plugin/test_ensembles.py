"""Ensembles of our schemes in fairseq's beam search, and plugins of others that import ours."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_attn.fairseq_tools.data import PreparedData
from tests.helpers.checkpoints import SIZES, state_of
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.filterwarnings("ignore")  # of fairseq's own modules
FLAGS = [*SIZES["encoder"], *SIZES["decoder"]]
ARCHS = ("multi_query_transformer", "collaborative_transformer", "transformer")


@pytest.fixture(scope="module")
def checkpoints(tiny_translation: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of two schemes and of fairseq's own attention."""
    folder = tmp_path_factory.mktemp("ensemble")
    for arch in ARCHS:
        state = state_of(tiny_translation.folder, arch, flags=FLAGS)
        for name, tensor in state["model"].items():
            if name.endswith("embed_tokens.weight"):
                tensor += torch.randn(tensor.shape) * 0.3
        torch.save(state, folder / f"{arch}.pt")
    return folder


def test_an_ensemble_scores_as_its_models_do_together(
    checkpoints: Path, tiny_translation: PreparedData
) -> None:
    """`--path A.pt:B.pt`: a token's probability is the mean of its models', caches and beams of all
    kinds of attention side by side."""
    from fairseq import checkpoint_utils, utils

    paths = utils.split_paths(":".join(str(checkpoints / f"{arch}.pt") for arch in ARCHS))
    models, _, task = checkpoint_utils.load_model_ensemble_and_task(
        paths, arg_overrides={"data": str(tiny_translation.folder)}
    )
    assert len(models) == 3
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    batch: Any = dataset.collater([dataset[index] for index in range(6)])
    generator = task.build_generator(models, Namespace(beam=3, max_len_b=8))
    with torch.no_grad():
        found = task.inference_step(generator, models, batch)
        for row, hypotheses in enumerate(found):
            for hypothesis in hypotheses:
                tokens = hypothesis["tokens"]
                start = torch.cat([tokens[-1:], tokens[:-1]])[None]  # as fairseq begins: with eos
                source = batch["net_input"]["src_tokens"][row : row + 1]
                lengths = batch["net_input"]["src_lengths"][row : row + 1]
                each = [model(source, lengths, start)[0].softmax(-1) for model in models]
                mean = torch.stack(each).mean(0)[0]
                alone = mean.gather(-1, tokens[:, None])[:, 0].log()
                assert torch.allclose(hypothesis["positional_scores"], alone, atol=1e-4)


THEIRS = """
import fairseq_plugin
from fairseq.models import register_model_architecture
from fairseq.models import ARCH_CONFIG_REGISTRY

@register_model_architecture("multi_query_transformer", "their_transformer")
def theirs(args):
    args.encoder_embed_dim = getattr(args, "encoder_embed_dim", 8)
    ARCH_CONFIG_REGISTRY["multi_query_transformer"](args)
"""
LOAD = """
import sys
from argparse import Namespace
from fairseq import checkpoint_utils, utils
from fairseq.models import ARCH_MODEL_REGISTRY
folder, ours, checkpoint, data = sys.argv[1:]
utils.import_user_module(Namespace(user_dir=folder))
assert "their_transformer" in ARCH_MODEL_REGISTRY
utils.import_user_module(Namespace(user_dir=ours))
models, _, _ = checkpoint_utils.load_model_ensemble_and_task(
    [checkpoint], arg_overrides={"data": data}
)
print(type(models[0]).__name__)
"""


def test_a_plugin_of_others_may_import_ours(
    checkpoints: Path, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    """Its folder as --user-dir: their architecture is there, ours are, and none twice."""
    theirs = tmp_path / "their_plugin"
    theirs.mkdir()
    (theirs / "__init__.py").write_text(THEIRS)
    command = [sys.executable, "-W", "ignore", "-c", LOAD, str(theirs)]
    command += [str(ROOT / "fairseq_plugin"), str(checkpoints / f"{ARCHS[0]}.pt")]
    done = subprocess.run(
        [*command, str(tiny_translation.folder)], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "PlannedTransformer_multi_query"
