"""Votes on a trained baseline, held once: plans then say which heads stay before any training."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from nas_attn.engine.votes import keep_votes, votes_of
from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.inherited_votes import hold_votes, votes_on_offer
from nas_attn.fairseq_tools.measure import calibrate, load_calibration
from nas_attn.fairseq_tools.trained import load_trained
from nas_attn.files import write_json
from nas_attn.study.inheritance import leaves_as_many
from nas_attn.study.sensitivity import SensitivityTarget, target_of_study
from nas_attn.trials.layout import CALIBRATION_FILE, VOTES_FILE
from nas_attn.workflows.events import Events
from nas_attn.workflows.session import Session, Trainer

logger = logging.getLogger(__name__)


def calibration_of(target: SensitivityTarget, events: Events) -> Path:
    """The file of what a baseline's attention is called with; recorded if it is not there.

    Raises:
        NasAttnError: The baseline cannot be measured.
    """
    calibration = target.measurements / CALIBRATION_FILE
    if target.checkpoint is not None and not calibration.is_file():
        events.on_message("recording what the baseline's attention sees ...")
        try:
            calibrate(target.checkpoint, target.data_folder, calibration, distil=target.distils)
        except NasAttnError as error:  # also what is refused: a baseline was trained before
            raise NasAttnError(f"the baseline cannot be measured: {error}") from None
    return calibration


def hold_on_baseline(trainer: Trainer, target: SensitivityTarget) -> None:
    """Hold the votes that a target's space asks for, as far as its record lacks them.

    The record keeps them, so that other drivers and later starts find the same; so does a file
    beside the calibration, for people.

    Args:
        trainer: Trainer with the record of the study, or of the checkpoint's run folder.
        target: Target with the checkpoint that is voted on.
    """
    known = votes_of(trainer.store)
    wanted = [place for place in votes_on_offer(target.space) if known.of(*place) is None]
    if not wanted:
        return
    assert target.checkpoint is not None, "only earlier measurements can be read"
    calibration = calibration_of(target, trainer.events)
    trainer.events.on_message(f"holding {len(wanted)} votes on the baseline's heads ...")
    votes = hold_votes(load_trained(target.checkpoint), wanted, load_calibration(calibration).calls)
    kept = keep_votes(trainer.store, votes)
    write_json(calibration.with_name(VOTES_FILE), kept.to_json())


def with_votes(session: Session) -> Session:
    """A session whose plans have the heads that votes on the trained baseline left.

    For warm starts, which leave no time to vote in. The baseline is trained if it is not there.
    """
    study = session.study
    if not (study.search.warm_start.from_baseline and votes_on_offer(study.space)):
        return session
    first, *others = study.config.training.seeds
    unsure = [
        choice
        for site, _, choice in votes_on_offer(study.space)
        if not leaves_as_many(choice, study.space.shapes[site].num_heads)
    ]
    if others and unsure:
        logger.warning(
            "%s may leave another number of heads with each seed, so that vote is held on the "
            "baseline of seed %d alone; from those of other seeds (%s) heads of the same numbers "
            "are kept, which nobody voted on: search with one seed, or by keep: pillars",
            unsure[0],
            first,
            ", ".join(map(str, others)),
        )
    checkpoint = study.trained_checkpoint(session.train_baseline())
    hold_on_baseline(session, target_of_study(study, checkpoint))
    return replace(session, subject=study.settled(votes_of(session.store)))
