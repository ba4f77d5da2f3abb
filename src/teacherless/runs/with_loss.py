"""A method as a model that returns its own loss, as trainers for models of `transformers` expect them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from teacherless import losses
from teacherless.batch import as_batch
from teacherless.method import Method, Progress
from teacherless.network import call


class WithLoss(nn.Module):
    """`forward(**batch)` returns `{"loss": ..., "logits": ...}`: Hugging Face's Trainer needs nothing else.

    In training the method's loss, and the logits of its first student; in evaluation that student's cross-entropy, so
    that a batch need not have what only training wants.

    Args:
        method: of one turn a batch.
        progress: from `tl.progress(epochs=...)`, for methods that need the epoch; call its `advance()` after each.
    """

    accepts_loss_kwargs = False  # or the Trainer takes the loss to be a share of the accumulated batches' already

    def __init__(self, method: Method, progress: Progress | None = None) -> None:
        super().__init__()
        self.method, self.progress = method, progress

    def forward(self, *given: Any, **named: Any) -> dict[str, Tensor]:
        """A batch as a dict by keywords, or any other shape that a method takes."""
        batch = as_batch(named or (given[0] if len(given) == 1 else given))
        if self.training:
            out = self.method(batch, progress=self.progress)
            return {"loss": out.loss, "logits": out.logits[0]}
        logits = call(next(iter(self.method.students().values())), batch.inputs[0])
        return {"loss": losses.ce(logits, batch.labels).mean(), "logits": logits}
