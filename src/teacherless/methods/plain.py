"""Plain: one network, hard labels. What everything else is compared with.

What: Independent training with cross-entropy.
Formula: L = CE(z, y)
Paper: None; the "independent" column of every table.
Defaults: No hyperparameters of its own. `--smoothing` softens the labels of any method.
Where we differ from the paper, and from the authors' code: Nothing to differ from.
Ships: `student`, the network itself.
Cost: One forward and one backward per batch: the unit in which the other methods' costs are given.
Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

from torch import nn

from teacherless import losses
from teacherless.method import Batch, Method, Output, Progress
from teacherless.network import call


class Plain(Method):
    """Cross-entropy on one network."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, batch: Batch, progress: Progress = Progress()) -> Output:
        """`ce`: the student learns from the labels."""
        logits = call(self.student, batch.inputs[0])  # [B, C]
        return Output({"ce": losses.ce(logits, batch.labels, self.smoothing).mean()}, logits.detach()[None])
