"""Ranks: one run in several processes, which torchrun starts. The only file with collectives.

The ranks stand on a mesh ("peer", "data"). Along "peer" they hold different students and draw the same batches: what
the students say of a batch meets in one all-reduce of B×(C+1) numbers, or in one all-gather where the mean of the
others is not enough. Along "data" they hold the same students and draw different parts of one global batch: there the
whole method is in DistributedDataParallel.

Every rank builds the whole method from the same seed and trains its own students. A checkpoint is that of one process,
gathered on the first rank, so that any mesh can go on from it; beside it stands what each rank has for itself, for the
same mesh to go on to the same bits. All ranks issue all collectives in one order.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

import teacherless
from teacherless.data import Loader
from teacherless.errors import Diverged, InputError, Lost, Stopped
from teacherless.method import Method
from teacherless.models.files import state_hash
from teacherless.training import rank_states, torchrun
from teacherless.training.checkpoint import State
from teacherless.training.ema import Average, norm_buffers
from teacherless.training.mesh import dealt, part_of, shape, splits
from teacherless.training.precision import channels_last
from teacherless.training.settings import Settings

T = TypeVar("T")
START = timedelta(seconds=60)  # for all ranks to be there, at least
PATIENCE = timedelta(days=30)  # for what only the first rank does; torchrun ends us if that is gone


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[Ranks]:
    """The ranks of a run, for as long as it lasts.

    Raises: Lost when another rank is gone, or does not answer in time.
    """
    if torchrun.size() == 1:
        yield Ranks()
        return
    if "RANK" not in os.environ:
        raise InputError(f"WORLD_SIZE: found {torchrun.size()}, and no RANK; start the ranks with torchrun")
    cuda = settings.device in ("auto", "cuda") and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(torchrun.local_rank())
    ranks = Ranks()
    try:
        timeout = timedelta(seconds=settings.timeout)
        start = max(timeout, START)
        store, rank, count = next(rendezvous("env://", timeout=start))
        store = PrefixStore(f"start{torchrun.restarts()[0]}", store)  # it has the addresses of those before us
        backend = "nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=start)
        ranks.join(timeout)
        yield ranks
        dist.destroy_process_group()
    except InputError as error:
        if ranks.rank and str(error) != ranks.agreed:
            print(f"teacherless: rank {ranks.rank}: {error}", file=sys.stderr)
        raise
    except (Diverged, Stopped):  # of all ranks, after the same step
        dist.destroy_process_group()
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not re.search("gloo|nccl", str(error), re.IGNORECASE):
            raise
        late = f"did not answer within --timeout {settings.timeout}"
        lost = f"a rank is gone, or {late}; what is saved is good, and --resume goes on from there"
        if ranks.rank and not torchrun.local_rank():  # a line from every machine
            print(f"teacherless: rank {ranks.rank}: {lost}", file=sys.stderr)
        raise Lost(lost) from error


class Ranks:
    """This process among those of its run. Alone, what is given to the others comes back as it is."""

    def __init__(self) -> None:
        self.rank, self.size, self.shape = 0, 1, (1, 1)
        self.peer = self.data = 0  # where this rank stands
        self.assigned: list[list[int]] = []  # the students of each place along "peer"
        self.foreign: tuple[str, ...] = ()  # how the names of other ranks' tensors begin
        self.agreed: str | None = None  # the error that all ranks have raised
        self.idle: list[nn.Parameter] = []  # what other ranks train
        self.began: State | None = None  # what the first rank goes on from

    def join(self, timeout: timedelta) -> None:
        """Meet the others."""
        self.rank, self.size, self.timeout = dist.get_rank(), dist.get_world_size(), timeout
        self.control = dist.new_group(backend="gloo", timeout=timeout)
        self.patient = dist.new_group(backend="gloo", timeout=PATIENCE)

    # What ranks say to each other -------------------------------------------------------------------------------------

    def everyone(self, value: T, patient: bool = False) -> list[T]:
        """The values of all ranks."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, group=self.patient if patient else self.control)
        return values

    def from_first(self, value: T) -> T:
        """The first rank's value, however long that takes."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0, group=self.patient)
        return values[0]

    def agree(self, *flags: int) -> list[int]:
        """The largest that any rank says."""
        if self.size == 1:
            return [*flags]
        largest = torch.tensor(flags)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.control)
        return largest.tolist()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What one rank cannot do, none does. Raises: InputError, on all ranks the same."""
        own = None
        try:
            yield
        except InputError as error:
            if self.size == 1:
                raise
            own = str(error)
        texts = self.everyone(own, patient=True)
        if errors := {text: rank for rank, text in reversed([*enumerate(texts)]) if text}:
            text, rank = min(errors.items(), key=lambda pair: pair[1])
            self.agreed = text if rank == 0 else f"rank {rank}: {text}"
            raise InputError(self.agreed)

    def check(self, method: Method, settings: Settings, data: Any) -> None:
        """Raises: InputError if ranks have different code, settings, data or networks."""
        if self.size == 1:
            return
        code = hashlib.sha256(torch.__version__.encode())
        for path in sorted(Path(teacherless.__file__).parent.rglob("*.py")):
            code.update(path.read_bytes())
        facts = {
            "code": code.hexdigest(),
            "settings": settings.model_dump(mode="json", exclude={"data_dir", "device"}),
            "data": data,
            "networks": state_hash(method),
        }
        with self.together():
            for rank, theirs in enumerate(all_facts := self.everyone(facts, patient=True)):
                if other := [what for what in facts if theirs[what] != all_facts[0][what]]:
                    whose = f"rank {rank}: its {' and '.join(other)}"
                    raise InputError(f"{whose} differ from rank 0's; all ranks need the same")

    # The mesh ---------------------------------------------------------------------------------------------------------

    def lay_out(self, method: Method, settings: Settings, loader: Any) -> None:
        """Stand on the mesh: students are dealt so that their costs balance, or as `place` says.

        Sets `part`, the method of this rank's students, and `through`, what to call instead of it.

        Raises: InputError for a mesh or a place that does not fit, for a loader that is not the same everywhere, and
            for synchronised batch norm on a CPU.
        """
        self.method = self.part = method
        self.through: nn.Module | None = None
        names = list(method.students())
        self.own, self.assigned = [*range(len(names))], [[*range(len(names))]]
        self.parameters = {name for name, _ in method.named_parameters()}
        if self.size == 1:
            return
        self.shape = peers, data = shape(settings.parallel, self.size, len(names), splits(method))
        if settings.on_divergence == "revive":
            raise InputError(f"--on-divergence: found revive with {self.size} ranks; must be isolate or stop")
        if settings.sync_bn and self._device().type != "cuda":
            raise InputError(f"--sync-bn: found device {self._device().type}; synchronised batch norm needs GPUs")
        if not isinstance(loader, Loader):
            kind = type(loader).__name__
            raise InputError(f"train_data: found a {kind}; ranks need a teacherless.data.Loader, alike on all of them")
        self.peer, self.data = divmod(self.rank, data)
        part_of(loader, self.data, data)
        self.assigned, _ = dealt(method, settings.place, loader, peers)
        self.own = self.assigned[self.peer]
        grid = torch.arange(self.size).view(peers, data)
        make = partial(dist.new_subgroups_by_enumeration, timeout=self.timeout)  # a mesh's own wait half an hour
        groups = [make(each.tolist())[0] for each in (grid.t(), grid)]
        self.mesh = DeviceMesh.from_group(groups, self._device().type, mesh=grid, mesh_dim_names=("peer", "data"))
        if peers > 1:
            self._share_out(method)
        if data > 1:
            method.whole_batch = self.part.whole_batch = self._whole_batch
            if settings.sync_bn:
                group = self.mesh["data"].get_group()
                nn.SyncBatchNorm.convert_sync_batchnorm(self.part, group)  # type: ignore[no-untyped-call]
            channels_last(self.part)  # before its buckets are laid out
            self.through = _in_ddp(self.part, self.mesh["data"].get_group())

    def _share_out(self, method: Method) -> None:
        part = method.shard(self.own, self._mean_of_others, self._gather)
        assert part is not None
        self.part = part
        nets = [*method.students().values()]
        paths = {id(net): f"{path}." for path, net in method.named_modules()}
        others = [i for i in range(len(nets)) if i not in self.own]
        self.foreign = tuple(paths[id(nets[i])] for i in others)
        self.idle = [parameter for i in others for parameter in nets[i].parameters()]
        self.others, self.ours = (torch.tensor(each, device=self._device()) for each in (others, self.own))

    def _device(self) -> torch.device:
        return next(self.method.parameters()).device

    def __str__(self) -> str:
        places = " | ".join(",".join(list(self.method.students())[i] for i in each) for each in self.assigned)
        return f"{self.size} ranks, {self.shape[0]} peer x {self.shape[1]} data: {places}"

    def about(self) -> dict[str, Any] | None:
        """What run.json and a checkpoint say of the mesh."""
        return None if self.size == 1 else {"peer": self.shape[0], "data": self.shape[1], "students": self.assigned}

    # Seams of the methods ---------------------------------------------------------------------------------------------

    def _mean_of_others(self, own: Tensor) -> Tensor:
        """The exchange between ranks. `[k·V, B, C+1] -> [k·V, B, C+1]`."""
        total, views = own.sum(0), len(own) // len(self.own)  # [B, C+1]
        dist.all_reduce(total, group=self.mesh["peer"].get_group())
        flags = self.method.left()
        assert flags is not None
        here = (total[0, :-1].sum() / views).round()  # who has left sends 0, everybody else what adds up to 1
        gone = len(flags) - here - (flags[self.ours] >= 0).sum()
        flags[self.others] = torch.where(torch.arange(len(self.others), device=flags.device) < gone, 0, -1)
        rest = len(flags) * views - 1
        return torch.sub(total.div_(rest), own, alpha=1 / rest)

    def _gather(self, own: Tensor) -> tuple[Tensor, list[int]]:
        """Everyone's predictions, in the students' order. `[k·V, B, C] -> [K·V, B, C], our rows`."""
        views, most = len(own) // len(self.own), max(map(len, self.assigned))
        sent = torch.cat([own, own.new_zeros(views * most - len(own), *own.shape[1:])])
        received = [torch.empty_like(sent) for _ in self.assigned]
        dist.all_gather(received, sent, group=self.mesh["peer"].get_group())
        rows = {
            student: received[rank][i * views : (i + 1) * views]
            for rank, each in enumerate(self.assigned)
            for i, student in enumerate(each)
        }
        mine = [student * views + view for student in self.own for view in range(views)]
        return torch.cat([rows[student] for student in sorted(rows)]), mine

    def _whole_batch(self, own: Tensor) -> Tensor:
        """Every data rank's rows. `[b, ...] -> [D·b, ...]`."""
        parts = [torch.empty_like(own) for _ in range(self.shape[1])]
        dist.all_gather(parts, own.contiguous(), group=self.mesh["data"].get_group())
        return torch.cat(parts)

    # At an epoch's end, and to save -----------------------------------------------------------------------------------

    def settle(self, average: Average | None) -> None:
        """Data ranks have seen different batches: from here on, all have the mean of their batch-norm statistics."""
        live = norm_buffers(self.method) if self.shape[1] > 1 else {}
        tensors = [*live.values(), *(average.values[name] for name in live if average)]
        if not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat, group=self.mesh["data"].get_group())
        means = torch.split(flat.div_(self.shape[1]), [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def merge_left(self) -> None:
        """Who has left, and when, from the ranks that hold them: during an epoch the others only know how many."""
        if self.foreign:
            flags = self.method.left()
            assert flags is not None
            known = torch.full_like(flags, -1).index_copy(0, self.ours, flags[self.ours])
            dist.all_reduce(known, dist.ReduceOp.MAX, group=self.mesh["peer"].get_group())
            flags.copy_(known)

    def everyones(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """What every student said, where each rank has it of its own. `[N, C]` by name."""
        if not self.foreign:
            return own
        device = self._device()
        parts = self.everyone({} if self.data else {name: each.cpu() for name, each in own.items()})
        logits = {name: each.to(device) for part in parts for name, each in part.items()}
        return {name: logits[name] for name in self.method.students()}

    def forget(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop an optimizer's state of what other ranks train."""
        for parameter in self.idle:
            optimizer.state.pop(parameter, None)

    def collect(self, method: Method) -> None:
        """All students on every rank, as the ranks that hold them have them."""
        if self.foreign:
            own = {key: value.cpu() for key, value in method.state_dict().items() if not key.startswith(self.foreign)}
            for theirs in self.everyone({} if self.data else own):
                method.load_state_dict(theirs, strict=False)

    def totals(self, sums: dict[str, Tensor], count: int) -> tuple[dict[str, Tensor], int]:
        """An epoch's sums so far, and of how many samples they are, of all ranks."""
        if not (mesh := self.about()):
            return sums, count
        return rank_states.added(self.everyone(({name: value.cpu() for name, value in sums.items()}, count)), mesh)

    def whole(self, state: State) -> State:
        """On the first rank: the state of the whole run as one process has it, and what each rank has for itself."""
        if not (mesh := self.about()):
            return state
        own = rank_states.sent(state, self.data, self.foreign, self.parameters)
        states: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(own, states, dst=0, group=self.control)
        return rank_states.of_run(states, mesh) if states else state

    def mine(self, state: State) -> State:
        """What this rank goes on from: on the same mesh with what it had for itself, to the same bits."""
        if not (mesh := self.about()):
            return state
        self.began = state
        return rank_states.of_rank(self.rank, state, mesh)


class _Apart(nn.Module):
    """A method, and a parameter that nothing uses.

    From three ranks up DistributedDataParallel goes on to the same bits only with `find_unused_parameters`: else it
    arranges its buckets anew after the first step. And it warns where it finds that there are none.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method, self.unused = method, nn.Parameter(next(method.parameters()).new_zeros(1))

    def forward(self, *given: Any) -> Any:
        return self.method(*given)


def _in_ddp(method: Method, group: dist.ProcessGroup) -> nn.Module:
    """Buffers are the same at the beginning, and every rank's own from then on."""
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of one input channel, where any order is the same
    forward = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    alone: dict[str, Any] = {"forward_sync_buffers" if forward else "broadcast_buffers": False}
    return DistributedDataParallel(_Apart(method), process_group=group, find_unused_parameters=True, **alone)
