"""Derive every proposal of a search again, from what its driver saw."""

from __future__ import annotations

from nas_attn.engine.audit import derive_again
from nas_attn.engine.provenance import check_proposing, proposing_of
from nas_attn.engine.store import TrialStore
from nas_attn.engine.votes import votes_of
from nas_attn.errors import NasAttnError
from nas_attn.study.study import Study
from nas_attn.workflows.session import predicted_of, queue_of


def check_proposals(study: Study, store: TrialStore) -> int:
    """Derive every proposal again by the study as it is now, and compare.

    Returns:
        How many there are; all are as on record.

    Raises:
        SearchError: Settings that proposals hang on have changed.
        NasAttnError: One comes out otherwise.
    """
    study = study.continued(proposing_of(store))
    check_proposing(store, study.proposing())
    if study.search.warm_start.from_baseline:
        study = study.settled(votes_of(store))
    proposer = study.proposer(queue_of(store), predicted_of(store))
    derived = list(derive_again(proposer, store.trials()))
    for derivation in derived:
        if not derivation.agrees:
            trial = derivation.trial
            other = f"trial {trial.number}: the history gives {derivation.plan}"
            if derivation.plan == trial.plan:
                other += f" from trial {derivation.parent}, but on record is trial {trial.parent}"
                raise NasAttnError(other)
            raise NasAttnError(f"{other}, but on record is {trial.plan}")
    return len(derived)
