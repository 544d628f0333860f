"""The sections of a study file that say what is sought, how, and with which resources."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nas_attn.section import Section


class ObjectivesConfig(Section):
    """The two objectives, both minimised."""

    loss: str = "nll_loss"
    """A validation metric that fairseq logs (`nll_loss` for label-smoothed criteria, in bits)."""
    parameters: Literal["attention", "non_embedding", "total", "effective"] = "total"
    """Which parameters count; `effective` is the total less attention's dead and redundant ones."""


class SearchConfig(Section):
    """How plans are proposed."""

    trials: Annotated[int, Field(ge=1)] = 24
    """Trainings to pay for, the baseline included; proposals that repeat a plan are free."""
    sampler: Literal["tpe", "nsga2", "gp", "random", "stratified_random"] = "tpe"
    startup_trials: Annotated[int, Field(ge=0)] = 8
    """Trials spread evenly over the exact parameter axis before the sampler takes over."""
    seed: int = 1


class ExecutionConfig(Section):
    """Where trials run."""

    executor: Literal["local", "ray"] = "local"
    workers: Annotated[int, Field(ge=1)] | None = None
    """Trials at a time; by default as many as CPUs (or GPUs) allow."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of a trial; on small models several one-thread trials are fastest."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs of a trial; a fraction shares one."""
    storage: str | None = None
    """Any Optuna storage URL; a journal file in the run folder by default."""
