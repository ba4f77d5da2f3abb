"""Snapshot: one training with a rate that restarts; the network at the end of every cycle joins an ensemble.

What:
    Snapshot ensemble: train one network, get M for its price. The rate falls to zero along a cosine M times over; each
    time the network is in another minimum, where a copy stays. Whose prediction is the soft target? Nobody's: the
    copies only predict, together. What ONE compares its ensemble with.

Formula:
    L = CE(z, y)
    rate(t) = lr / 2 · (cos(π (t mod T/M) / (T/M)) + 1), t the step of T
    ensemble = mean_m softmax(z_m), z_m the network at the end of cycle m

Paper:
    Huang, Li, Pleiss, Liu, Hopcroft, Weinberger: Snapshot Ensembles, ICLR 2017 (arXiv:1704.00109), section 3.
    ONE (arXiv:1806.04606), Table 4, has it beside ONE-E.

Defaults:
    cycles 5: what the test costs in ONE's Table 4 say; the paper has 6 of 50 epochs on CIFAR.
    --epochs are shared by the cycles, rounded up as in the paper: 30 epochs are 5 cycles of 6, 31 are 5 of 7.

Where we differ from the paper, and from the authors' code:
    The cosine is that of --sched cosine, the default, and starts anew with each cycle; so does another --sched, whose
    epochs (--warmup-epochs, --decay-milestones) are counted within a cycle. A cycle begins with a new optimizer: the
    momentum of a rate of zero is not carried over. --ema and --select best choose what a cycle leaves. All copies are
    averaged; the paper also averages only the last m.

Ships: `student`, the network after the last cycle. The ensemble of all cycles is evaluated, not shipped.
Cost: That of plain; M - 1 more networks are kept. Predicting with the ensemble takes M forwards.
Results: In points of accuracy, of the studies in results/ (docs/learnt.md).
"""

from __future__ import annotations

from torch import nn

from teacherless.errors import InputError
from teacherless.methods._parts import MeanProbability, still
from teacherless.methods.plain import Plain


class Snapshot(Plain):
    """Cross-entropy on one network, in cycles.

    Args:
        student: the network.
        cycles: how often the rate falls to zero, 2 or more.

    Raises: InputError for fewer cycles.
    """

    def __init__(self, student: nn.Module, *, cycles: int = 5) -> None:
        super().__init__(student)
        if cycles < 2:
            raise InputError(f"cycles: found {cycles}; must be at least 2 (one cycle is plain)")
        self.phases = tuple(f"cycle{i + 1}" for i in range(cycles))
        self.snapshots = nn.ModuleList(still(student) for _ in self.phases[1:])

    def begin(self, phase: str) -> None:
        """The network as the last cycle left it is copied; it goes on from there."""
        super().begin(phase)
        done = self.phases.index(phase)
        if done:
            self.snapshots[done - 1].load_state_dict(self.student.state_dict())

    def share(self, amount: int) -> int:
        """The cycles share the run's epochs, rounded up."""
        return -(-amount // len(self.phases))

    def ensemble(self) -> nn.Module:
        """The mean probability of all cycles."""
        return MeanProbability([*self.snapshots, self.student])
