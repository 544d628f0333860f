"""The doctor tells what does not work, and stops a task there."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas_attn.attention import SCHEMES
from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.self_test import (
    MIXED,
    SelfTestStep,
    Unproven,
    examine,
    run_steps,
    steps_of,
)
from nas_attn.plan import AttentionPlan

pytestmark = pytest.mark.slow


def step(name: str, *arguments: str, fault: str | None = None) -> SelfTestStep:
    def proof(output: str) -> str:
        if fault is not None:
            raise Unproven(fault)
        return "shown"

    return SelfTestStep(
        name=name,
        task="translation",
        module="preprocess",
        arguments=arguments,
        proof=proof,
    )


def test_faults_end_a_task(tmp_path: Path) -> None:
    steps = [step("first", "--help"), step("second", "--no-such-flag"), step("third", "--help")]
    findings = run_steps("multi_head", steps, tmp_path)
    assert [finding.step for finding in findings] == ["first", "second"]
    assert (findings[0].fault, findings[0].shown) == (None, "shown")
    assert findings[1].fault is not None
    assert findings[1].fault.startswith("exit status 2: ")
    assert "no-such-flag" in findings[1].fault
    log = tmp_path / "multi_head-translation-second.log"
    assert "no-such-flag" in log.read_text()


def test_a_command_that_ends_well_must_also_show_its_work(tmp_path: Path) -> None:
    steps = [step("first", "--help", fault="5 of 61 sentences were decoded")]
    (finding,) = run_steps("multi_head", steps, tmp_path)
    assert finding.fault == "5 of 61 sentences were decoded"


def test_proofs(tmp_path: Path) -> None:
    generate = steps_of("multi_head", "translation", tmp_path, tmp_path)[-1]
    decoded = "".join(f"\nH-{index}\t-0.5\tba" for index in range(61))
    assert generate.proof(decoded + "\nGenerate test: BLEU = 3.20 12/3") == "61 sentences"
    _, resume, _, tune, judge = steps_of("multi_head", "masked_lm", tmp_path, tmp_path)
    loaded = "Loaded checkpoint /x/checkpoint_last.pt (epoch 2 @ {} updates)"
    assert resume.proof(loaded.format(12)) == ""
    assert judge.proof("x | test | valid | loss 0.1 | accuracy 75.0 | wps 3") == "accuracy 75.0"
    for proof, output, message in (
        (generate.proof, decoded[:-20] + "BLEU = 3.20", "60 of 61 sentences were decoded"),
        (generate.proof, decoded, "the output lacks"),
        (resume.proof, loaded.format(0), "the output lacks"),
        (tune.proof, loaded.format(12), "the output lacks"),
        (judge.proof, "x | test | valid | accuracy 74.9 |", "at least 75 of 100"),
    ):
        with pytest.raises(Unproven, match=message):
            proof(output)


def test_the_mixed_plan_has_another_scheme_in_every_layer_and_site(tmp_path: Path) -> None:
    train = steps_of(MIXED, "translation", tmp_path, tmp_path)[0]
    plan = AttentionPlan.parse(train.arguments[train.arguments.index("--attention-plan") + 1])
    columns = [[choice.scheme for choice in choices] for _, choices in plan]
    assert [sorted(column) for column in columns] == [sorted(SCHEMES)] * 3
    assert all(len(set(layer)) == 3 for layer in zip(*columns, strict=True))


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NasAttnError, match="cannot try 'multihead'; there are multi_head"):
        next(examine(["multihead"], ["translation"], tmp_path))
    with pytest.raises(NasAttnError, match="cannot try 'glue'; there are translation"):
        next(examine(["multi_head"], ["glue"], tmp_path))
