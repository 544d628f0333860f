"""Beam search with the encoder's output once for all hypotheses of a sentence."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import torch
from fairseq.models.transformer import TransformerEncoderBase
from fairseq.sequence_generator import SequenceGenerator

from fairseq_plugin.beams import follow, repeats
from fairseq_plugin.layers import PlannedEncoder
from nas_attn.attention import SCHEMES
from nas_attn.errors import PlanError
from nas_attn.fairseq_tools.models import blank_dictionary, parse_architecture

TINY = [
    "--encoder-layers=2", "--decoder-layers=2", "--encoder-embed-dim=16", "--decoder-embed-dim=16",
    "--encoder-ffn-embed-dim=16", "--decoder-ffn-embed-dim=16", "--encoder-attention-heads=4",
    "--decoder-attention-heads=4", "--share-all-embeddings",
]  # fmt: skip


def test_orders_that_keep_hypotheses_together() -> None:
    order = torch.tensor([2, 2, 0, 4, 5, 5])
    assert follow(order, 1) == (order, 1)
    rows, beams = follow(order, 3)
    assert (rows.tolist(), beams) == ([0, 1], 3)
    rows, beams = follow(torch.tensor([4, 3, 3]), 3)
    assert (rows.tolist(), beams) == ([1], 3)


def test_orders_that_tear_hypotheses_apart() -> None:
    for order in ([0, 3, 1, 4, 5, 2], [0, 4]):
        rows, beams = follow(torch.tensor(order), 3)
        assert (rows.tolist(), beams) == ([hypothesis // 3 for hypothesis in order], 1)


@pytest.mark.parametrize(
    ("order", "times"), [([0, 0, 1, 1], 2), ([0, 1], 1), ([0, 1, 0, 1], 1), ([0, 0, 1], 1)]
)
def test_repeated_rows(order: list[int], times: int) -> None:
    assert repeats(torch.tensor(order), 2) == times


def make_model(scheme: str, *flags: str) -> tuple[Any, Any]:
    from fairseq.models import ARCH_MODEL_REGISTRY

    torch.manual_seed(7)
    dictionary = blank_dictionary(24)
    args = parse_architecture(f"{scheme}_transformer", [*TINY, *flags])
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model = ARCH_MODEL_REGISTRY[args.arch].build_model(args, task).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model, dictionary


def translate(model: Any, dictionary: Any) -> list[list[tuple[list[int], float]]]:
    """Tokens and score of every hypothesis of a batch with padding; two sentences end early."""
    source = torch.randint(4, 24, (5, 7), generator=torch.Generator().manual_seed(8))
    source[:, -1] = dictionary.eos()
    source[2, :3] = dictionary.pad()
    source[4, :5] = dictionary.pad()
    lengths = source.ne(dictionary.pad()).sum(dim=1)
    generator = SequenceGenerator([model], dictionary, beam_size=3, max_len_b=12)
    sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}}
    prefix = torch.full((5, 3), dictionary.pad())
    prefix[1] = torch.tensor([5, 6, dictionary.eos()])
    prefix[3, :2] = torch.tensor([7, dictionary.eos()])
    return [
        [(hypothesis["tokens"].tolist(), float(hypothesis["score"])) for hypothesis in sentence]
        for sentence in generator.generate([model], sample, prefix_tokens=prefix)
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_translations_as_with_repeated_rows(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dictionary = make_model(scheme)
    found = translate(model, dictionary)
    model.decoder.keep_of_source("output")
    of_output = translate(model, dictionary)
    model.decoder.keep_of_source("keys_values")
    monkeypatch.setattr(
        PlannedEncoder, "reorder_encoder_out", TransformerEncoderBase.reorder_encoder_out
    )
    expected = translate(model, dictionary)
    for translated in (found, of_output):
        assert [[t for t, _ in s] for s in translated] == [[t for t, _ in s] for s in expected]
        scores = [[score for _, score in sentence] for sentence in translated]
        assert scores == [pytest.approx([score for _, score in s], abs=1e-4) for s in expected]
    assert [len(sentence[0][0]) for sentence in found][1:4:2] == [3, 2]


def test_rows_of_the_encoder_stay_single_until_torn_apart() -> None:
    model, _ = make_model("multi_head")
    source = torch.randint(4, 24, (2, 5))
    encoded = model.encoder(source, torch.tensor([5, 5]))
    rows = encoded["encoder_out"][0]
    beams = model.encoder.reorder_encoder_out(encoded, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert torch.equal(beams["encoder_out"][0], rows)
    moved = model.encoder.reorder_encoder_out(beams, torch.tensor([2, 0, 0, 5, 3, 3]))
    assert torch.equal(moved["encoder_out"][0], rows)
    one = model.encoder.reorder_encoder_out(moved, torch.tensor([3, 4, 5]))
    assert torch.equal(one["encoder_out"][0], rows[:, 1:])
    torn = model.encoder.reorder_encoder_out(moved, torch.tensor([0, 4]))
    assert torch.equal(torn["encoder_out"][0], rows)
    assert torn.beams == 1


def test_decoders_that_read_the_encoder_as_their_own_get_every_row() -> None:
    model, _ = make_model("multi_head", "--cross-self-attention")
    encoded = model.encoder(torch.randint(4, 24, (2, 5)), torch.tensor([5, 5]))
    beams = model.encoder.reorder_encoder_out(encoded, torch.tensor([0, 0, 1, 1]))
    assert beams["encoder_out"][0].size(1) == 4


def test_the_output_of_the_encoder_is_all_that_is_kept_of_a_source() -> None:
    model, _ = make_model("multi_head", "--source-cache=output")
    source = torch.randint(4, 24, (2, 5))
    encoded = model.encoder(source, torch.tensor([5, 5]))
    state: dict[str, Any] = {}
    model.decoder(source[:, :1], encoder_out=encoded, incremental_state=state)
    attention = model.decoder.layers[0].encoder_attn
    assert attention._get_input_buffer(state) == {}
    with pytest.raises(PlanError, match="source_cache must be keys_values, output, but is 'both'"):
        model.decoder.keep_of_source("both")
