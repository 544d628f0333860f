"""The sections of a study file that say what is sought, how, and with which resources."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from nas_attn._deprecated import renamed_key
from nas_attn.bleu import DEFAULT, BleuTokenizer
from nas_attn.config_model import ConfigModel, Scalar
from nas_attn.errors import UsageError
from nas_attn.known_cost import STARTS
from nas_attn.literals import parse_count
from nas_attn.measures import Cost, KnownCost, Scores


def _amount(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_count(value, "limit")
    except UsageError as error:
        raise ValueError(str(error).removeprefix("limit: ")) from None


Amount = Annotated[float, Field(gt=0), BeforeValidator(_amount, json_schema_input_type=float | str)]


def _total() -> list[Cost]:
    return ["total"]


class ObjectivesConfig(ConfigModel):
    """What is weighed against what: one measure of quality, and one or two costs."""

    metric: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "nll_loss"
    """A validation metric that fairseq logs: nll_loss (bits), ppl, loss; bleu, accuracy (higher is
    better)."""
    costs: list[Cost] = Field(default_factory=_total, min_length=1, max_length=2)
    """One or two of attention, non_embedding, total, effective (parameters of four kinds),
    cache_bytes (bytes of keys and values per generated token), source_cache_bytes (per source
    token), flops (operations per sentence), decoding_seconds and peak_memory (MiB, measured).
    Trials are spread over the first, which must be known before training."""
    limits: dict[KnownCost, Amount] = Field(default_factory=dict)
    """Upper limits of costs, such as {total: 20M}; plans beyond them are not trained."""
    sentence_length: Annotated[int, Field(ge=1)] = 25
    """Tokens of the sentence that `flops` counts."""
    decoding_runs: Annotated[int, Field(ge=1)] = 3
    """Times the validation set is translated for `decoding_seconds`; the median counts."""
    bleu_tokenizer: BleuTokenizer = DEFAULT
    """sacreBLEU's tokenizer of every BLEU; 13a cuts no language that is written without spaces."""

    @model_validator(mode="before")
    @classmethod
    def _former_keys(cls, data: Any) -> Any:
        return renamed_key(data, "loss", "metric", section="objectives")

    @field_validator("costs")
    @classmethod
    def _sensible(cls, costs: list[Cost]) -> list[Cost]:
        if len(set(costs)) != len(costs):
            raise ValueError("the same cost stands twice")
        if costs[0] in ("decoding_seconds", "peak_memory"):
            raise ValueError(
                f"{costs[0]} is known only after training, so it cannot come first; put the "
                "parameters (total) before it"
            )
        return costs


REFUSED_RULES = {
    "asha": "ASHA",
    "async_hyperband": "ASHA",
    "hyperband": "Hyperband",
    "bohb": "BOHB",
    "median": "the median",
    "median_stopping": "the median",
    "pbt": "population based training",
    "percentile": "Optuna's percentile pruner",
    "successive_halving": "Optuna's successive halving",
    "wilcoxon": "Optuna's Wilcoxon pruner",
}


def _refuse_single_objective(value: Any) -> Any:
    if isinstance(value, str) and value.lower() in REFUSED_RULES:
        raise ValueError(
            f"the rule of {REFUSED_RULES[value.lower()]} ranks by one objective, which stops small "
            "models because they are small; use halving or forecast, which weigh all objectives"
        )
    return value


class StoppingConfig(ConfigModel):
    """When unpromising trials are stopped (see `nas_attn.engine.stopping`)."""

    rule: Annotated[
        Literal["none", "halving", "forecast"], BeforeValidator(_refuse_single_objective)
    ] = "none"
    """`halving` stops trials early whose loss and costs, at the same validation, are dominated by
    too many others; `forecast` those that would end dominated even at the best that finished curves
    leave possible; `none` trains all trials to their end."""
    first: Annotated[int, Field(ge=1)] = 1
    """Validations of a trial before the first decision."""
    factor: Annotated[int, Field(ge=2)] = 3
    """For `halving`: one in `factor` trials of a rung continues; the next rung comes at `factor`
    times as many validations."""
    coverage: Annotated[float, Field(ge=0.5, lt=1)] = 0.9
    """For `forecast`: how surely, at each validation, a trial ends no better than the best that it
    is allowed. 0.9 stops nothing before 9 trials have finished, 0.8 before 4."""


MIN_COMPARED = 12
AUTO_FRACTION = 0.1
AUTO_TIMES = 2.0


def _source_alone(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


class WarmStartConfig(ConfigModel):
    """Trials start from the trained baseline, converted to their plan, and not from scratch.

    Every trial of such a search ends with the same fine-tuning: one that is warm after the
    conversion, the baseline and what cannot inherit after a whole training of its own.
    """

    source: Literal["none", "baseline", "nothing"] = "none"
    """`baseline`: trials start from the trained baseline, converted to their plan. `nothing`: all
    trials are trained from scratch and fine-tuned as warm ones are, to compare."""
    fraction: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = 0.1
    """Updates of fine-tuning, as a fraction of those of a training. `auto`: a tenth, and up to
    another tenth for the points of a predicted front that are predicted to lose most."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.5
    """Peak learning rate of fine-tuning, as a fraction of the training's `lr`; it falls to 0."""
    arguments: dict[str, Scalar] = Field(default_factory=dict)
    """Flags of fairseq-train that replace the training's during fine-tuning."""
    distil: bool = False
    """Train converted modules alone first, to do what they did before; then every scheme can reuse
    trained heads."""
    teacher: Literal["none", "baseline"] = "none"
    """`baseline`: fine-tuning also learns from the outputs of the trained baseline."""
    rank_agreement: Annotated[int, Field(ge=0)] = 0
    """Number of warm trials that are also trained from scratch, to see whether the order is the
    same; 0, or at least 12."""
    ladder: bool = False
    """Points of a predicted front start from larger, fine-tuned ones and not from the baseline."""

    @field_validator("rank_agreement")
    @classmethod
    def _enough(cls, count: int) -> int:
        if 0 < count < MIN_COMPARED:
            raise ValueError(f"must be 0 or at least {MIN_COMPARED}, as fewer trials say nothing")
        return count

    @model_validator(mode="after")
    def _compared_with_warm(self) -> WarmStartConfig:
        if self.rank_agreement and not self.from_baseline:
            raise ValueError("rank_agreement compares warm trials, which source: baseline has")
        if self.rank_agreement and self.fraction == "auto":
            raise ValueError("rank_agreement compares plans that are all fine-tuned alike")
        if self.distil and not self.from_baseline:
            raise ValueError("distil trains converted modules, which source: baseline has")
        return self

    @model_validator(mode="after")
    def _taught_by_baseline(self) -> WarmStartConfig:
        if self.is_taught and not self.from_baseline:
            raise ValueError("teacher: baseline needs one that is trained first: source: baseline")
        return self

    @property
    def least_fraction(self) -> float:
        """Share of a training's updates that every fine-tuning has at the least."""
        return AUTO_FRACTION if self.fraction == "auto" else self.fraction

    @property
    def longest(self) -> float:
        """How many times as long as the shortest the longest fine-tuning is."""
        return AUTO_TIMES if self.fraction == "auto" else 1.0

    @property
    def is_taught(self) -> bool:
        """Whether fine-tuning asks a teacher."""
        return self.teacher != "none"

    @property
    def is_on(self) -> bool:
        """Whether every trial ends with fine-tuning."""
        return self.source != "none"

    @property
    def from_baseline(self) -> bool:
        """Whether trials start from the trained baseline."""
        return self.source == "baseline"


class SearchConfig(ConfigModel):
    """How plans are proposed."""

    trials: Annotated[int, Field(ge=1)] = 24
    """Number of trials, the baseline included; proposals that repeat a plan are free."""
    sampler: Literal["tpe", "nsga2", "gp", "random", "stratified_random", "known_cost"] = "tpe"
    """What proposes plans: `known_cost` by the losses of others and the exact first cost of all;
    `stratified_random` spread evenly over that cost; the others are Optuna's."""
    startup_trials: Annotated[int, Field(ge=0)] = 8
    """Trials spread evenly over the first cost before the sampler takes over; left out, 3 with
    `known_cost`."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 1
    """Random seed of the proposals."""
    stopping: StoppingConfig = StoppingConfig()
    """When trials are stopped early."""
    warm_start: Annotated[
        WarmStartConfig,
        BeforeValidator(
            _source_alone,
            json_schema_input_type=Literal["none", "baseline", "nothing"] | WarmStartConfig,
        ),
    ] = WarmStartConfig()
    """Where trials start from; a word alone is its `source`."""
    strategy: Literal["sampler", "sensitivity"] = "sampler"
    """`sensitivity` measures single conversions of the trained baseline, predicts the front from
    them, and trains points of it; `sampler` asks the sampler."""
    scores: Scores | None = None
    """How single conversions are scored: `measured`, a pass over the validation set for each;
    `gradient`, one pass with gradients for all; `auto`, the same, and a twelfth measured. Left out:
    `auto`, or `measured` where modules are trained alone, which workers share."""
    enqueue: Literal["none", "sensitivity"] = "none"
    """`sensitivity` puts points of the predicted front in place of the startup trials, before the
    sampler."""
    give_up_after: Annotated[int, Field(ge=1)] = 5
    """The search ends when this many trials in a row have failed."""

    @model_validator(mode="before")
    @classmethod
    def _startup_of_sampler(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("sampler") == "known_cost":
            return {"startup_trials": STARTS, **data}
        return data

    @property
    def predicts(self) -> bool:
        return "sensitivity" in (self.strategy, self.enqueue)

    def scores_where(self, *, distils: bool) -> Scores:
        """How single conversions are scored.

        Args:
            distils: Whether converted modules are trained alone.
        """
        return self.scores or ("measured" if distils else "auto")

    @model_validator(mode="after")
    def _predicted_points_start_warm(self) -> SearchConfig:
        if self.strategy == "sensitivity" and not self.warm_start.from_baseline:
            raise ValueError(
                "strategy: sensitivity fine-tunes converted models: set search.warm_start to "
                "baseline, or take enqueue: sensitivity"
            )
        return self


LEAST_GPUS = 1e-4
"""The least fraction that Ray knows."""


class ResourcesConfig(ConfigModel):
    """What one trial gets."""

    cpus: Annotated[int, Field(ge=1)] = 1
    """CPU threads of a trial; on small models several one-thread trials are fastest."""
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    """GPUs of a trial: a fraction shares one; with several, fairseq trains on all of them (on one
    machine)."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> ResourcesConfig:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError("gpus: must be a fraction up to 1, or a whole number")
        if 0 < self.gpus < LEAST_GPUS:
            raise ValueError(f"gpus: must be 0, or at least {LEAST_GPUS:g}")
        return self


class ExecutionConfig(ConfigModel):
    """Where trials run, and what happens when something breaks."""

    executor: Literal["local", "ray", "simulated"] = "local"
    """`local` runs sub-processes here, `ray` a Ray cluster; `simulated` replays learning curves in
    virtual time (needs the section `replay`)."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Trials to run in parallel; by default as many as CPUs or GPUs allow."""
    storage: str | None = None
    """An Optuna storage URL, grpc://HOST:PORT, or env:NAME for an environment variable that holds
    it; by default a journal file in the run folder."""
    transfer: Literal["shared_folder", "object_store"] = "shared_folder"
    """How data reach other Ray nodes and checkpoints come back."""
    fork_server: bool = True
    """Fork trainings from a process that has imported fairseq, which saves seconds per trial."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Times a trial is continued after a fault that may not happen again."""
    hang_minutes: Annotated[float, Field(gt=0)] = 60
    """A training that writes nothing for this many minutes is ended."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 20
    """Seconds between two signs of life of a driver."""
    grace_seconds: Annotated[float, Field(gt=0)] = 120
    """A driver on another machine that gives no sign of life for this many seconds is taken to be
    dead, and others take over its trials."""

    @model_validator(mode="before")
    @classmethod
    def _former_keys(cls, data: Any) -> Any:
        return renamed_key(data, "warm", "fork_server", section="execution")

    @model_validator(mode="after")
    def _grace_is_longer(self) -> ExecutionConfig:
        if self.grace_seconds < 3 * self.heartbeat_seconds:
            raise ValueError("grace_seconds: must be at least three times heartbeat_seconds")
        return self
