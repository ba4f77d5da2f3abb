"""One worker thread per core, each with some of the students: small networks use a machine's cores better side by side
than one after the other.

The numbers are those of the loop with one thread, to the bit: students compute alone, and what they exchange is
summed in their order, not in that of their arrival.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from teacherless.batch import mapped
from teacherless.errors import InputError
from teacherless.evaluation.metrics import flops
from teacherless.method import Batch, Exchange, Method, Output

Step = Callable[[Method, torch.optim.Optimizer], Output]  # of a part of the students, on the batch of the moment


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """One thread per operation, everywhere: the setting is global, and mixed settings make threads fight for cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ThreadExchange:
    """The exchange between threads: fill your slot, wait for all, sum the slots in the students' order.

    Args:
        assigned: the students of each worker.
    """

    def __init__(self, assigned: Sequence[Sequence[int]]) -> None:
        self.barrier = threading.Barrier(len(assigned))
        self.slots: list[Sequence[Tensor]] = [()] * len(assigned)
        places = {student: (worker, i) for worker, own in enumerate(assigned) for i, student in enumerate(own)}
        self.order = [places[student] for student in sorted(places)]
        self.sizes = [len(students) for students in assigned]

    def exchange(self, worker: int) -> Exchange:
        """The exchange of one worker: `own [k, B, C+1] -> mean over the others [k, B, C+1]`."""

        def mean_of_others(own: Tensor) -> Tensor:
            self.slots[worker] = own.view(self.sizes[worker], -1, *own.shape[1:]).unbind(0)  # each [V, B, C+1]
            self.barrier.wait()
            messages = [message for worker, i in self.order for message in self.slots[worker][i]]  # K·V of [B, C+1]
            rest = len(messages) - 1
            total = functools.reduce(torch.add, messages).div_(rest)
            return torch.sub(total, own, alpha=1 / rest)

        return mean_of_others

    def over(self) -> None:
        """All workers are done: ready for the next step."""
        self.slots = [()] * len(self.slots)
        self.barrier.reset()


class Threads:
    """The workers of one method; they end with `pool`.

    Args:
        method: one whose `shard` splits it by students.
        batch: any batch, to count what each student costs.

    Raises: InputError where the method cannot be split.
    """

    def __init__(self, method: Method, batch: Batch) -> None:
        two = mapped(lambda x: x[:2], batch.inputs[0])
        costs = [flops(student, two) for student in method.students().values()]
        self.assigned = assign(costs, min(len(costs), cores()))
        self.shared = ThreadExchange(self.assigned)
        self.parts = []
        for worker, students in enumerate(self.assigned):
            part = method.shard(students, self.shared.exchange(worker))
            assert part is not None
            self.parts.append(part)
        # The initializer, since the number of threads is a thread's own too, until it has asked for the global one.
        self.pool = ThreadPoolExecutor(len(self.assigned), "teacherless", torch.set_num_threads, (1,))
        self.checked = False

    def step(self, one: Step, optimizer: torch.optim.Optimizer) -> Output:
        """One step of all parts. If a worker fails, the others stop waiting for it, and its error is raised here."""
        before = None if self.checked else torch.get_rng_state()
        grad = torch.is_grad_enabled()
        jobs = [
            self.pool.submit(self._work, one, part, share(optimizer, students), grad)
            for part, students in zip(self.parts, self.assigned, strict=True)
        ]
        errors = [error for job in jobs if (error := job.exception())]  # waits for all
        self.shared.over()
        if errors:
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
        if before is not None and not torch.equal(before, torch.get_rng_state()):
            raise InputError("--engine: found threads, but a student's forward draws random numbers; use --engine loop")
        self.checked = True
        return self._merged([job.result() for job in jobs])

    def _work(self, one: Step, part: Method, optimizer: torch.optim.Optimizer, grad: bool) -> Output:
        try:
            with torch.set_grad_enabled(grad):
                return one(part, optimizer)
        except BaseException:
            self.shared.barrier.abort()
            raise

    def _merged(self, outputs: list[Output]) -> Output:
        """Terms added up, students' logits in their order."""
        terms = {name: torch.stack([out.terms[name] for out in outputs]).sum() for name in outputs[0].terms}
        rows = [row for out in outputs for row in out.logits]
        order = [student for students in self.assigned for student in students]
        return Output(terms, torch.stack([row for _, row in sorted(zip(order, rows, strict=True), key=lambda p: p[0])]))


def assign(costs: Sequence[int], workers: int) -> list[list[int]]:
    """Students to workers, dearest first, each to whoever has least to do. A rule of the costs alone."""
    assigned: list[list[int]] = [[] for _ in range(workers)]
    for student in sorted(range(len(costs)), key=lambda i: -costs[i]):
        min(assigned, key=lambda students: (sum(costs[i] for i in students), len(students))).append(student)
    return [sorted(students) for students in assigned]


def share(optimizer: torch.optim.Optimizer, students: Sequence[int]) -> torch.optim.Optimizer:
    """The same optimizer, its state and groups shared, for some students' groups: what one thread steps."""
    part = copy.copy(optimizer)
    names = {optimizer.param_groups[i]["name"] for i in students}
    part.param_groups = [group for group in optimizer.param_groups if group["name"] in names]  # head and body
    return part
