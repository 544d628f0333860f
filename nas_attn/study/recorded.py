"""Studies as their run folders hold them, without their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nas_attn.engine.objectives import Objectives
from nas_attn.engine.provenance import PROPOSING
from nas_attn.engine.status import BUDGET
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.errors import UsageError
from nas_attn.files import JOURNAL
from nas_attn.measures import maximises
from nas_attn.plan import SiteShape
from nas_attn.study.config import StudyConfig

MODEL = "model"
"""Under this name the record keeps what reports say of the model."""
STUDY = "study"
"""Under this name the record keeps what the study's file said at the last start."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What reports say of a study's model, for which fairseq has to be asked.

    Args:
        shapes: Shapes of the model's sites.
        module_parameters: Parameters of the space's modules, by site and choice.
        tuning_updates: The fewest and the most updates that end a trial; None without warm starts.
    """

    shapes: Mapping[str, SiteShape]
    module_parameters: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    tuning_updates: tuple[int, int] | None = None


def keep_model(store: TrialStore, facts: ModelFacts) -> None:
    """Write down what reports say of the model, so that they need not ask fairseq again."""
    said = json.loads(json.dumps(asdict(facts)))
    if store.metadata().get(MODEL) != said:
        store.set_metadata(MODEL, said)


def recorded_model(metadata: Mapping[str, Any]) -> ModelFacts | None:
    """What reports say of the model; None in records of old, which do not hold it."""
    said = metadata.get(MODEL)
    if said is None:
        return None
    tuning = said["tuning_updates"]
    return ModelFacts(
        shapes={site: SiteShape(**shape) for site, shape in said["shapes"].items()},
        module_parameters=said["module_parameters"],
        tuning_updates=None if tuning is None else (tuning[0], tuning[1]),
    )


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds the journal of a search."""
    return (folder / JOURNAL).is_file()


def open_run_folder(folder: Path) -> TrialStore:
    """Open the record of a run folder, whose study file is not needed.

    Raises:
        UsageError: the folder holds no journal with one study.
        SearchError: the journal cannot be read.
    """
    if not is_run_folder(folder):
        raise UsageError(
            f"{folder} is no run folder of a search: it holds no {JOURNAL}; if the study is kept "
            "in another storage, name its study file"
        )
    storage = open_storage(None, folder)
    # Names of studies hold no spaces; those of confirmations and claims beside them do.
    names = [study.study_name for study in storage.get_all_studies()]
    names = [name for name in names if " " not in name]
    if len(names) != 1:
        raise UsageError(f"{folder} holds {len(names)} studies; name the study file instead")
    study = storage.get_study_id_from_name(names[0])
    kept = storage.get_study_user_attrs(study).get("settings", {}).get("objectives", {})
    costs = kept.get("costs", [kept.get("parameters")])
    if "loss" not in kept or None in costs:
        raise UsageError(f"{folder} has no objectives on record; name the study file instead")
    maximise = maximises(kept["loss"])
    objectives = Objectives(metric=kept["loss"], maximise=maximise, costs=tuple(costs), limits={})
    return TrialStore(names[0], storage, objectives)


def keep_study_file(store: TrialStore, config: StudyConfig) -> None:
    """Write down what the study's file says, apart from the storage, which may hold a password."""
    said = config.model_dump(mode="json", exclude_unset=True)
    said.get("execution", {}).pop("storage", None)
    if store.metadata().get(STUDY) != said:
        store.set_metadata(STUDY, said)


def recorded_tree(store: TrialStore) -> dict[str, Any]:
    """A study's sections as its file said them at the last start, as far as they are on record.

    Args:
        store: Trials of the study.

    Raises:
        UsageError: its settings are not on record, as it was never started.
    """
    metadata = store.metadata()
    said = metadata.get(STUDY) or _from_settings(store, metadata)
    tree: dict[str, Any] = json.loads(json.dumps(said)) | {"name": store.name}
    if str(tree.get("space", "")).endswith((".yaml", ".yml")):
        tree["space"] = store.settings()["space"]
    if BUDGET in metadata:
        tree["search"] = {**tree.get("search", {}), "trials": metadata[BUDGET]}
    return tree


def _from_settings(store: TrialStore, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What records of old hold: all that trials and proposals hang on."""
    settings = store.settings()
    if "training" not in settings:
        raise UsageError(f"the record of {store.name} holds no settings: name its study file")
    tree = {name: settings[name] for name in ("data", "training", "space")}
    objectives = dict(settings["objectives"])
    tree["objectives"] = {"metric": objectives.pop("loss"), **objectives}
    if "replay" in settings:
        tree["replay"] = settings["replay"]
    if settings.get("resources", {}).get("gpus", 1) > 1:
        tree["resources"] = {"gpus": settings["resources"]["gpus"]}
    elif settings.get("resources", {}).get("device") == "gpu":
        tree["resources"] = {"gpus": 1}
    tree["search"] = {}
    if "warm_start" in settings:
        tree["search"]["warm_start"] = settings["warm_start"]
    for key, value in metadata.get(PROPOSING, {}).items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    return tree
