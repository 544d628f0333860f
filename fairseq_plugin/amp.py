"""fairseq's optimizer for `--amp`, which divides gradients by the scale of the loss twice.

It has them divided for clipping on behalf of torch's optimizer, and then the step made on behalf of
its own, which torch's scaler has not met before and divides for again. Adam hides that as long as
gradients are far from its epsilon; other optimizers take steps that are smaller by the scale.
"""

from __future__ import annotations

from fairseq.optim.amp_optimizer import AMPOptimizer


def step(self: AMPOptimizer) -> None:
    """Take the step with the gradients that were clipped, unless they overflowed."""
    self.scaler.step(self.optimizer)
    self.scaler.update()


AMPOptimizer.step = step
