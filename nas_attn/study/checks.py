"""Judges a study whole: each section, and what sections ask of each other."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from nas_attn.attention import Attention
from nas_attn.attention.counting import build_on_meta
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.pruning import PrunableAttention
from nas_attn.attention.voting import holds_vote
from nas_attn.engine.config import WarmStartConfig
from nas_attn.errors import ConfigError, ConfigIssue, DataError, PlanError
from nas_attn.fairseq_tools.arguments import check_arguments, training_arguments
from nas_attn.fairseq_tools.commands import check_bleu, check_metric
from nas_attn.fairseq_tools.config import DataConfig
from nas_attn.fairseq_tools.costs import available_costs
from nas_attn.fairseq_tools.data import find_split_files, load_prepared, read_manifest
from nas_attn.fairseq_tools.fine_tuning import fine_tuning
from nas_attn.fairseq_tools.flags import given, is_distilled, without_refused
from nas_attn.fairseq_tools.folders import missing_splits
from nas_attn.fairseq_tools.models import (
    blank_dictionary,
    check_model,
    load_dictionaries,
    site_shapes,
)
from nas_attn.fairseq_tools.parsed import check_training
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape
from nas_attn.space import SearchSpace, SpaceConfig
from nas_attn.study.config import StudyConfig
from nas_attn.study.data import DEMO_TYPES
from nas_attn.study.devices import check_devices, drops_layers
from nas_attn.study.spaces import fitted, load_space_config

logger = logging.getLogger(__name__)

NO_VOTE = (
    "prunes while it trains, and a warm start leaves no time for that: take grouped_head with "
    "kept_heads or collaborative with a small shared_dim, or search without search.warm_start"
)
NAMED_BEFORE = (
    "has heads voted on, on the trained baseline, which says how many and which stay: leave out "
    "kept_heads and heads, or keep"
)
NO_BASELINE = (
    "has heads voted on, and where fine-tuned trials start from scratch there is no trained model "
    "to vote on: set search.warm_start.source to baseline, take kept_heads, or search without "
    "search.warm_start"
)


def judge(
    config: StudyConfig, source: str, *, is_read_only: bool = False, needs_data: bool = True
) -> SearchSpace:
    """Check a study whole.

    Args:
        config: Configuration of the study.
        source: Name that messages give, such as the file's path.
        is_read_only: Whether nothing is trained, so that flags of fairseq that a study may not set
            (but could, once) are passed over with a warning.
        needs_data: Whether its data must be there.

    Returns:
        The study's space over the model.

    Raises:
        ConfigError: lists everything that is wrong, by key path.
    """
    if is_read_only:
        config = _without_refused(config)
    faults = _check_data(config.data, config.training.task) if needs_data else []
    faults += _check_sections(config)
    if not faults and config.replay is None and not is_read_only:
        faults += _check_devices(config)
    space_config, space_key = _load_space(config.space, faults)
    if faults or space_config is None:
        raise ConfigError(source, faults)
    shapes = site_shapes(training_arguments(config.training))
    if isinstance(config.space, str):
        space_config = fitted(config.space, space_config, shapes)
    try:
        space = SearchSpace(space_config, shapes)
    except ConfigError as error:
        located = [ConfigIssue(f"{space_key}.{f.key}", f.message) for f in error.faults]
        raise ConfigError(source, located) from None
    faults = _check_choices(config, space, space_key)
    if faults:
        raise ConfigError(source, faults)
    return space


def check_plan(
    config: StudyConfig, plan: AttentionPlan, shapes: Mapping[str, SiteShape]
) -> list[ConfigIssue]:
    """What is wrong with a plan that is to be trained from scratch, whole, and by itself.

    Args:
        config: Configuration of the study.
        plan: Plan for all sites.
        shapes: Shapes of the sites.
    """
    search = config.search.model_copy(update={"warm_start": WarmStartConfig()})
    cold = config.model_copy(update={"search": search})
    unknown = f"the model has no such site; it has {', '.join(shapes)}"
    faults = {(site, unknown): None for site, _ in plan if site not in shapes}
    for site, shape in shapes.items():
        try:
            for choice in plan.layers(site, shape.num_layers):
                module = build_on_meta(choice, shape)
                faults |= dict.fromkeys((site, m) for m in _missing_for(choice, module, site, cold))
        except PlanError as error:
            faults[site, str(error)] = None
    fault = plan.source_fault()
    found = [ConfigIssue(site, message) for site, message in faults]
    return found if fault is None else [*found, ConfigIssue("encoder_decoder", fault)]


def _check_sections(config: StudyConfig) -> list[ConfigIssue]:
    """What is wrong with training and objectives; data and space are left out."""
    faults = [ConfigIssue(f"training.{f.key}", f.message) for f in check_arguments(config.training)]
    faults += _check_objectives(config)
    faults += _check_teachers(config)
    if not faults:
        faults += _check_training(config)
    if not faults:
        faults += _check_warm_start(config)
    return faults


def _check_choices(config: StudyConfig, space: SearchSpace, space_key: str) -> list[ConfigIssue]:
    """Choices of the space that do not fit the model or its training; each fault once."""
    seen: dict[tuple[str, str], None] = {}
    for key, site, choice in space.choices():
        try:
            module = build_on_meta(choice, space.shapes[site])
        except PlanError as error:
            seen[f"{space_key}.{key}", str(error)] = None
            continue
        for message in _missing_for(choice, module, site, config):
            seen[f"{space_key}.{key}", message] = None
    return [ConfigIssue(key, message) for key, message in seen]


def _without_refused(config: StudyConfig) -> StudyConfig:
    """A study without the flags that none may set."""
    training = config.training
    arguments = without_refused(training.arguments)
    left_out = sorted(training.arguments.keys() - arguments.keys())
    if not left_out:
        return config
    logger.warning(
        "no study may set training.arguments %s any more: what was trained is shown as it is",
        ", ".join(left_out),
    )
    training = training.model_copy(update={"arguments": arguments})
    return config.model_copy(update={"training": training})


def _check_objectives(config: StudyConfig) -> list[ConfigIssue]:
    """Objectives that this training does not have."""
    faults = check_metric(config.training, config.objectives.metric)
    faults += check_bleu(config.training, config.objectives.bleu_tokenizer)
    there_are = available_costs(config.training.task)
    named = {"objectives.costs": config.objectives.costs}
    named["objectives.limits"] = list(config.objectives.limits)
    for key, names in named.items():
        for name in names:
            if name not in there_are:
                message = f"{config.training.task} has no {name}; it has {', '.join(there_are)}"
                faults.append(ConfigIssue(key, message))
    if config.replay is not None:
        lacking = {"decoding_seconds": "nothing is decoded", "peak_memory": "nothing is trained"}
        for cost, what in lacking.items():
            if cost in config.objectives.costs:
                message = f"{what} where learning curves are replayed"
                faults.append(ConfigIssue("objectives.costs", message))
        if config.objectives.metric not in ("loss", "nll_loss"):
            faults.append(
                ConfigIssue("objectives.metric", "replayed curves have loss and nll_loss only")
            )
    elif config.execution.executor == "simulated":
        message = "simulated trials replay learning curves: add the section replay"
        faults.append(ConfigIssue("execution.executor", message))
    return faults


def _check_training(config: StudyConfig) -> list[ConfigIssue]:
    """What is wrong with the training as a whole: its model, its schedule, its vote."""
    training, data = config.training, config.data
    args = training_arguments(training)
    # The data set's own dictionaries may not be there yet; see `Study.check_limits`.
    size = data.text.vocab_size if data.text else DEMO_TYPES
    dictionaries = [blank_dictionary(size)]
    faults = list(check_model(args, dictionaries, training.arguments))
    if config.replay is None:
        faults += [
            ConfigIssue(f"training.{f.key}", f.message)
            for f in check_training(args, training.arguments)
        ]
    return faults


def _check_devices(config: StudyConfig) -> list[ConfigIssue]:
    """Flags that do not go with `resources.gpus`."""
    training = config.training
    args, gpus = training_arguments(training), config.resources.gpus
    return [
        ConfigIssue(f"training.{f.key}", f.message)
        for f in check_devices(args, training.arguments, gpus)
    ]


def _check_warm_start(config: StudyConfig) -> list[ConfigIssue]:
    """What is wrong with the fine-tuning of warm starts."""
    warm = config.search.warm_start
    key = "search.warm_start"
    advice = "set search.strategy to sensitivity and search.warm_start.source to baseline"
    if not (warm.from_baseline and config.search.strategy == "sensitivity"):
        if warm.ladder:
            why = "points of a predicted front start from each other"
            return [ConfigIssue(f"{key}.ladder", f"{why}: {advice}")]
        if warm.fraction == "auto":
            why = "how long a plan is fine-tuned follows from what it is predicted to lose"
            return [ConfigIssue(f"{key}.fraction", f"{why}: {advice}")]
    if not warm.is_on:
        return []
    if config.replay is not None:
        return [ConfigIssue(key, "replayed learning curves start from scratch: leave it out")]
    training = fine_tuning(
        config.training,
        1,
        learning_rate=warm.learning_rate,
        replaced=warm.arguments,
        is_taught=warm.is_taught,
    )
    faults = check_arguments(training)
    if not faults:
        # Nothing votes in fine-tuning, which spaces with a vote are refused for.
        args = training_arguments(training)
        args.vote_at_epoch = args.vote_at_update = 0
        faults = list(check_training(args, training.arguments))
    # A criterion that no teacher is for is right by itself.
    keys = {"arguments.criterion": "teacher"} if warm.is_taught else {}
    return [ConfigIssue(f"{key}.{keys.get(f.key, f.key)}", f.message) for f in faults]


def _check_teachers(config: StudyConfig) -> Iterator[ConfigIssue]:
    """Criterions that ask a teacher, which only `search.warm_start.teacher` names."""
    warm = config.search.warm_start
    for key, arguments in (
        ("training", config.training.arguments),
        ("search.warm_start", warm.arguments),
    ):
        name = str(given(arguments).get("criterion", ""))
        if is_distilled(name):
            yield ConfigIssue(
                f"{key}.arguments.criterion",
                f"{name} needs a teacher, which a study has in fine-tuning alone: leave distilled_ "
                "out, and set search.warm_start.teacher to baseline",
            )
    if warm.is_taught and given(config.training.arguments).get("adaptive-softmax-cutoff"):
        yield ConfigIssue(
            "search.warm_start.teacher",
            "an adaptive softmax gives no logits of all types that could be learned from: leave "
            "teacher or training.arguments.adaptive-softmax-cutoff out",
        )


def _prunes(module: Attention) -> bool:
    return isinstance(module, PrunableAttention) and module.is_prunable


def _missing_for(
    choice: AttentionChoice, module: Attention, site: str, config: StudyConfig
) -> Iterator[str]:
    """What the training lacks for attention that is grouped or pruned, or does to it."""
    training, warm_start = config.training, config.search.warm_start
    if warm_start.is_on and _prunes(module):
        if not holds_vote(choice):
            yield NO_VOTE
        elif not warm_start.from_baseline:
            yield NO_BASELINE
        elif dict(choice.options).keys() & {"kept_heads", "heads"}:
            yield NAMED_BEFORE
        return  # the vote is held on the trained baseline, and nothing is grouped in fine-tuning
    named = given(training.arguments)
    is_grouped = isinstance(module, GroupedHeadAttention)
    is_constrained = is_grouped and bool(module.alpha or module.beta)
    prunes = _prunes(module)
    if (is_constrained or prunes) and not str(named.get("criterion")).startswith("grouped_"):
        yield (
            "needs a criterion with the group constraint and the vote: set "
            f"training.arguments.criterion to grouped_{named.get('criterion', 'cross_entropy')}"
        )
    layerdrop = drops_layers(site, training.arguments)
    if (is_constrained or prunes) and is_grouped and layerdrop is not None:
        yield (
            f"compares heads in every batch, but training.arguments.{layerdrop} leaves layers out: "
            "set it to 0"
        )
    timed = named.get("vote-at-epoch") or named.get("vote-at-update")
    if prunes and not timed and not (is_grouped and module.centre_shift is not None):
        yield (
            "prunes, but nothing says when: set training.arguments.vote-at-epoch or "
            "vote-at-update, or the option centre_shift"
        )


def _load_space(
    given: str | SpaceConfig, faults: list[ConfigIssue]
) -> tuple[SpaceConfig | None, str]:
    if isinstance(given, SpaceConfig):
        return given, "space"
    try:
        return load_space_config(given), f"space ({given})"
    except ConfigError as error:
        faults += [
            ConfigIssue(f"space ({given}).{f.key}".replace(".(file)", ""), f.message)
            for f in error.faults
        ]
        return None, "space"


def _check_data(data: DataConfig, task: str) -> list[ConfigIssue]:
    try:
        return _data_faults(data, task)
    except OSError as error:
        return [ConfigIssue("data", f"cannot be read: {error}")]


def _data_faults(data: DataConfig, task: str) -> list[ConfigIssue]:
    if data.folder.is_dir():
        try:
            prepared = load_prepared(data.folder, data.trained_languages)
            load_dictionaries(prepared, task)
        except DataError as error:
            return [ConfigIssue("data.folder", str(error))]
        if (task == "translation") != bool(prepared.languages):
            return [ConfigIssue("data.folder", f"{data.folder} is no data set for {task}")]
        missing = missing_splits(data.folder, prepared.languages)
        if missing:
            message = f"{data.folder} lacks the binarised split {', '.join(missing)}"
            return [ConfigIssue("data.folder", f"{message}: make it with fairseq-preprocess")]
        made_from = read_manifest(data.folder).get("origin") or data.origin
        if data.origin and made_from != data.origin:
            message = f"{data.folder} was made from {made_from}; remove it or name another folder"
            return [ConfigIssue("data.folder", message)]
        return []
    if data.text is not None:
        if (task == "translation") != bool(data.text.languages):
            message = "must name source and target for translation, and nothing else"
            return [ConfigIssue("data.text.languages", message)]
        try:
            find_split_files(data.text.folder, data.text.languages or ["txt"])
        except DataError as error:
            return [ConfigIssue("data.text.folder", str(error))]
    elif data.demo is None:
        message = (
            f"folder {data.folder} does not exist, and neither text nor demo says what to make"
        )
        return [ConfigIssue("data.folder", message)]
    return []
