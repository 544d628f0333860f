"""What decoding says of a trained model's conversions: the time that it takes, and BLEU."""

from __future__ import annotations

from nas_attn.analysis.predictions import Predictions
from nas_attn.analysis.sensitivity import SensitivityFindings
from nas_attn.engine.decoding import DecodingTable
from nas_attn.engine.scores import keep_translation_score, translation_scores
from nas_attn.fairseq_tools.decoding_times import DecodingTimer
from nas_attn.fairseq_tools.measure import translate_plans
from nas_attn.machine import machine_text
from nas_attn.plan import AttentionChoice
from nas_attn.study.sensitivity import SensitivityTarget
from nas_attn.workflows.session import Trainer
from nas_attn.workflows.votes import calibration_of


def time_modules(trainer: Trainer, predictions: Predictions) -> None:
    """Time what decoding takes with each choice of the space, if that was not done here."""
    target, here = predictions.target, machine_text()
    choices: dict[str, dict[AttentionChoice, None]] = {}
    for plan in (target.baseline, *(change.plan for change in predictions.changes)):
        for site, shape in target.costs.shapes.items():
            choices.setdefault(site, {}).update(dict.fromkeys(plan.layers(site, shape.num_layers)))
    wanted = [(site, choice) for site, some in choices.items() for choice in some]
    table = predictions.decoding
    if table is not None and table.machine == here and table.knows(wanted):
        return
    trainer.events.on_message(f"timing {len(wanted)} kinds of modules while they decode ...")
    timer = _timer(target)
    modules = timer.of_choices({site: list(some) for site, some in choices.items()})
    baseline = timer.of_plans([target.baseline])[target.baseline]
    predictions.keep_decoding(DecodingTable.of(here, baseline, modules))


def time_models(trainer: Trainer, predictions: Predictions, findings: SensitivityFindings) -> None:
    """Time whole recommended models, as far as that was not done."""
    table, baseline = predictions.decoding, predictions.target.baseline
    assert table is not None, "modules are timed first"
    plans = [p.plan for p in findings.chosen if p.plan != baseline]
    wanted = [plan for plan in plans if plan.digest not in table.models]
    if wanted:
        trainer.events.on_message(f"timing {len(wanted)} recommended plans while they decode ...")
        taken = _timer(predictions.target).of_plans([baseline, *wanted])
        predictions.keep_decoding(table.with_models(taken, baseline))


def _timer(target: SensitivityTarget) -> DecodingTimer:
    assert target.checkpoint is not None, "only earlier measurements can be read"
    return DecodingTimer(
        target.checkpoint, target.data_folder, target.costs.shapes, threads=target.resources.cpus
    )


def translate(trainer: Trainer, predictions: Predictions, findings: SensitivityFindings) -> None:
    """Translate with the trained model and the recommended plans, as far as the record lacks it."""
    target, events = predictions.target, trainer.events
    plans = dict.fromkeys([target.baseline, *(point.plan for point in findings.chosen)])
    known = translation_scores(predictions.store)
    wanted = [plan for plan in plans if plan.digest not in known]
    assert target.checkpoint is not None, "only earlier measurements can be read"
    scores = translate_plans(
        target.checkpoint,
        wanted,
        target.data,
        calibration_of(target, events),
        tokenizer=target.bleu_tokenizer,
        distil=target.distils,
    )
    for number, (plan, bleu) in enumerate(zip(wanted, scores, strict=True), start=1):
        keep_translation_score(predictions.store, plan, bleu)
        events.on_message(f"translated {number} of {len(wanted)}: BLEU {bleu:.2f}")
