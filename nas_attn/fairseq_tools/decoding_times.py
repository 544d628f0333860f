"""How long decoding takes a model, and each attention module in it, on this machine.

Modules are timed where they work: in a model that translates, every layer of a site with another
choice, so that few translations serve many choices. What a choice takes depends on its site, and
hardly on its layer or its weights, so each is timed once, with random weights.
"""

from __future__ import annotations

import logging
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from nas_attn.attention import Attention
from nas_attn.attention.counting import build_choice
from nas_attn.errors import UsageError
from nas_attn.fairseq_tools.trained import load_batches, load_trained, task_config
from nas_attn.fairseq_tools.translation import BEAM
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape

logger = logging.getLogger(__name__)

SENTENCES = 64
"""Sentences of the batch that is translated: those of middle length of the validation set."""
ROUNDS = 5
"""Times that everything is timed, in turns; medians count."""
MICROSECONDS = 1e6

Choice = tuple[str, AttentionChoice]
"""A site, and what its layers may have."""


class DecodingTimer:
    """Translates a batch of a data set with a model, by a beam of 5, and says how long it took.

    Every translation is as long as the batch's targets are in the mean, so that times do not
    depend on what is written.

    Args:
        checkpoint: Checkpoint of a trained translation model.
        data: Binarised data set.
        shapes: Shapes of the model's sites.
        threads: Threads of PyTorch.

    Raises:
        UsageError: The model does not translate, or the data do not fit it.
    """

    def __init__(
        self, checkpoint: Path, data: Path, shapes: Mapping[str, SiteShape], *, threads: int
    ) -> None:
        from fairseq import tasks, utils

        self.trained = load_trained(checkpoint)
        self.shapes = shapes
        self.threads = threads
        model = self.trained.model
        if not (hasattr(model, "encoder") and hasattr(model, "decoder")):
            raise UsageError("only translations are decoded, and this model does not translate")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model.to(self.device)
        batches = load_batches(self.trained, data, "valid", max_tokens=64 * SENTENCES)
        lines = batches.lines[len(batches.lines) // 2][:SENTENCES]
        sample = batches.dataset.collater([batches.dataset[int(line)] for line in lines])
        self.sentences = len(lines)
        self.sample = utils.apply_to_sample(lambda tensor: tensor.to(self.device), sample)
        steps = max(1, round(int(sample["ntokens"]) / self.sentences) - 1)
        self._task = tasks.setup_task(task_config(self.trained, data))
        how = Namespace(beam=BEAM, min_len=steps, max_len_a=0, max_len_b=steps)
        self._generator = self._task.build_generator([model], how)

    def of_choices(self, choices: Mapping[str, Sequence[AttentionChoice]]) -> dict[Choice, float]:
        """Microseconds a sentence that decoding spends in one module.

        Args:
            choices: What a layer may have, by site.
        """
        places = self._places()
        most = max(-(-len(choices[site]) // len(layers)) for site, layers in places.items())
        taken: dict[Choice, list[float]] = {}
        for turn in range(ROUNDS):
            for number in range(most):
                wanted = {}
                for site, layers in places.items():
                    some = choices[site]
                    for index, layer in enumerate(layers):
                        # The last translation has room for some choices once more.
                        choice = some[(number * len(layers) + index) % len(some)]
                        wanted[site, layer] = choice
                for place, seconds in self._time_modules(wanted).items():
                    taken.setdefault((place[0], wanted[place]), []).append(seconds)
            logger.info("timed %d of %d rounds of modules", turn + 1, ROUNDS)
        return {
            choice: MICROSECONDS * statistics.median(seconds) / self.sentences
            for choice, seconds in taken.items()
        }

    def of_plans(self, plans: Iterable[AttentionPlan]) -> dict[AttentionPlan, float]:
        """Microseconds a sentence that decoding takes whole models."""
        wanted = list(dict.fromkeys(plans))
        taken: dict[AttentionPlan, list[float]] = {plan: [] for plan in wanted}
        for turn in range(ROUNDS):
            for plan in wanted:
                choices = {
                    (site, layer): plan.layers(site, self.shapes[site].num_layers)[layer]
                    for site, layers in self._places().items()
                    for layer in layers
                }
                with self._changed(choices):
                    taken[plan].append(self._translate())
            logger.info("timed %d of %d rounds of whole models", turn + 1, ROUNDS)
        return {
            plan: MICROSECONDS * statistics.median(seconds) / self.sentences
            for plan, seconds in taken.items()
        }

    def _places(self) -> dict[str, list[int]]:
        """The layers of each site."""
        places: dict[str, list[int]] = {}
        for site, layer in self.trained.modules:
            places.setdefault(site, []).append(layer)
        return places

    @contextmanager
    def _changed(self, choices: Mapping[tuple[str, int], AttentionChoice]) -> Iterator[None]:
        """The model with other choices, of random weights."""
        before: dict[tuple[str, int], Attention] = {}
        try:
            for place, choice in choices.items():
                adapter = self.trained.modules[place]
                before[place] = adapter.attention
                made = build_choice(choice, self.shapes[place[0]])
                adapter.attention = made.to(self.device).eval()
            yield
        finally:
            for place, attention in before.items():
                self.trained.modules[place].attention = attention

    def _time_modules(
        self, choices: Mapping[tuple[str, int], AttentionChoice]
    ) -> dict[tuple[str, int], float]:
        """Seconds that one translation spends in each module."""
        taken = dict.fromkeys(choices, 0.0)
        with self._changed(choices), ExitStack() as stack:
            for place in choices:

                def add(seconds: float, place: tuple[str, int] = place) -> None:
                    taken[place] += seconds

                stack.enter_context(_watched(self.trained.modules[place], self._now, add))
            self._translate()
        return taken

    def _translate(self) -> float:
        """Seconds of one translation of the batch."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            began = self._now()
            with torch.no_grad():
                self._task.inference_step(self._generator, [self.trained.model], self.sample)
            return self._now() - began
        finally:
            torch.set_num_threads(threads)

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


@contextmanager
def _watched(module: Any, now: Callable[[], float], add: Callable[[float], None]) -> Iterator[None]:
    """Tell how long a module works, each time that it runs or reorders what it keeps."""
    reorder = module.reorder_incremental_state
    began = 0.0

    def start(*_: Any) -> None:
        nonlocal began
        began = now()

    def stop(*_: Any) -> None:
        add(now() - began)

    def reordered(*arguments: Any, **named: Any) -> Any:
        start()
        found = reorder(*arguments, **named)
        stop()
        return found

    handles = [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
    module.reorder_incremental_state = reordered
    try:
        yield
    finally:
        del module.reorder_incremental_state
        for handle in handles:
            handle.remove()
