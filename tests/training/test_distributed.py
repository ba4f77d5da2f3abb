"""One run on several ranks: the numbers of one process, to rounding or to the bit."""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import CLASSES
from ranks import cohort, farthest, loader, on_ranks, resident, validation, weights, without_norm
from test_all_methods import build
from test_checkpoint import contents
from torch import Tensor, nn

import teacherless
import teacherless as tl
from teacherless.cli import main
from teacherless.data import Loader
from teacherless.data.augment.distort import Augment
from teacherless.method import Method
from teacherless.methods import METHODS
from teacherless.training import checkpoint

HOW: dict[str, Any] = {"epochs": 2, "lr": 0.05, "quiet": True}
COMPLETE = tuple(tuple(0.0 if i == k else 1 / 3 for i in range(4)) for k in range(4))  # by gather, as a matrix
LARGER = pytest.param(4, marks=pytest.mark.exhaustive)  # `make test` has four ranks on a mesh of 2 x 2


def peers(options: dict[str, Any], settings: dict[str, Any], batch: int = 16) -> tuple[list[Tensor], dict[str, Any]]:
    method = cohort(**options)
    result = tl.train(method, loader(batch, method.wants), validation(), validation(), **{**HOW, **settings})
    return weights(method), result.summary


@pytest.mark.parametrize("ranks", [2, LARGER])
@pytest.mark.parametrize(
    "options", [{}, {"mimicry": "dml_e", "temperature": 2.0}, {"views": 2}, {"views": 2, "disjoint": True}], ids=str
)
def test_peers_on_ranks_are_those_of_one_process(options: dict[str, Any], ranks: int) -> None:
    alone, summary = peers(options, {})
    for found, told in on_ranks(ranks, peers, options, {"parallel": "peers"}):
        assert farthest(found, alone) < 1e-6
        assert told["students"].keys() == summary["students"].keys()


@pytest.mark.parametrize("ranks", [2, LARGER])
@pytest.mark.parametrize(
    "options",
    [
        {"topology": "ring"},
        {"topology": COMPLETE},
        {"mimicry": "symmetric", "views": 2},
        {"target": "general", "temperature": 2.0},
        {"exchange_every": 3},
        {"exchange_every": 3, "topology": "ring"},
        {"exchange_every": 3, "disjoint": True},
    ],
    ids=str,
)
def test_peers_that_gather_are_those_of_one_process_to_the_bit(options: dict[str, Any], ranks: int) -> None:
    alone, _ = peers(options, {})
    for found, _ in on_ranks(ranks, peers, options, {"place": "1,0,0,1" if ranks == 2 else None}):
        assert farthest(found, alone) == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"exchange_every": 3},
        pytest.param({"topology": "star"}, marks=pytest.mark.exhaustive),
        pytest.param({"target": "general"}, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_a_mesh_of_2_by_2_is_the_2_peers_on_2_data_ranks(options: dict[str, Any]) -> None:
    """With batch norm: each data rank has statistics of its own part in both."""
    options = {"peers": 2, **options}
    ((expected, _), _) = on_ranks(2, peers, options, {"parallel": "data"}, 8)
    for found, _ in on_ranks(4, peers, options, {"parallel": "2x2"}, 8):
        assert farthest(found, expected) < 1e-6


def plainly(name: str, batch: int, parallel: str = "auto") -> list[Tensor]:
    """A method without norms."""
    method = without_norm(build(name))
    tl.train(method, loader(batch, method.wants), validation(), parallel=parallel, epochs=2, lr=0.01, quiet=True)
    return [value for name, value in method.state_dict().items() if not name.startswith("last")]  # of dlb: a part's own


DRAWS = {"r-drop", "cosub"}  # whose networks drop other units on every rank
FAST = {"dml", "ps-kd", "ddgsd", "fitnets"}  # what is of a whole batch, and what is trained in phases


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.exhaustive) for name in METHODS if name not in DRAWS],
)
def test_parts_of_a_batch_are_the_batch(name: str) -> None:
    alone = plainly(name, 16)
    for found in on_ranks(2, plainly, name, 8, "data"):
        assert farthest(found, alone) < 1e-6


# A folder ------------------------------------------------------------------------------------------------------------


def dropping(**options: Any) -> Method:
    """Peers that draw random numbers."""
    method = cohort(**options)
    for net in method.students().values():
        net.stages[1].append(nn.Dropout(0.2))
    return method


def in_folder(out: Path, batch: int, at: int, resume: bool, settings: dict[str, Any]) -> dict[str, Any]:
    """Train four peers; the last rank is asked to stop before batch `at`."""
    last = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
    options = settings.pop("options", {})
    method = dropping(**options) if settings.pop("drop", True) else cohort(norm=False, **options)
    stop = partial(signal.raise_signal, signal.SIGTERM)
    data = loader(batch, at=at if last else -1, then=stop)
    val = validation()
    how = {**HOW, "epochs": 3, **settings}
    result = tl.train(method, data, val, val, out=out, resume=resume, **how)
    return {"weights": weights(result.method), "history": result.history, "chosen": result.summary["chosen"]}


def resumed(ranks: int, parallel: str, batch: int, out: Path, **settings: Any) -> None:
    """A run that is stopped within an epoch ends with the bits of one that is not, on every rank."""
    settings = {"parallel": parallel, "select": "best", "ema": 0.5, **settings}
    straight = on_ranks(ranks, in_folder, out / "straight", batch, -1, False, settings)
    stopped = on_ranks(ranks, in_folder, out / "halves", batch, 16 // batch * 2, False, settings)
    assert {found.kind for found in stopped} == {"Stopped"}
    assert not (out / "halves" / "summary.json").exists()
    again = on_ranks(ranks, in_folder, out / "halves", batch, -1, True, settings)
    for found, expected in zip(again, straight, strict=True):
        assert farthest(found["weights"], straight[0]["weights"]) == 0
        assert found["chosen"] == expected["chosen"]
    assert contents(out / "halves") == contents(out / "straight")


@pytest.mark.parametrize(
    ("ranks", "parallel", "batch", "options"),
    [
        (2, "2x1", 16, {}),
        pytest.param(4, "2x2", 8, {}, marks=pytest.mark.slow),
        pytest.param(2, "2x1", 16, {"target": "general"}, marks=pytest.mark.exhaustive),
    ],
)
def test_resume_is_the_same_bits_on_the_same_mesh(
    ranks: int, parallel: str, batch: int, options: dict[str, Any], tmp_path: Path
) -> None:
    resumed(ranks, parallel, batch, tmp_path, options=options)


@pytest.mark.parametrize(
    ("ranks", "parallel", "batch"),
    [
        pytest.param(3, "data", 8, marks=pytest.mark.exhaustive),  # DDP's own way breaks from three ranks up
        pytest.param(2, "data", 8, marks=pytest.mark.exhaustive),
        pytest.param(4, "data", 8, marks=pytest.mark.exhaustive),
        pytest.param(4, "4x1", 16, marks=pytest.mark.exhaustive),
    ],
)
def test_resume_is_the_same_bits_on_larger_meshes(ranks: int, parallel: str, batch: int, tmp_path: Path) -> None:
    resumed(ranks, parallel, batch, tmp_path)


@pytest.mark.parametrize(
    ("ranks", "parallel", "batch", "every"),
    [(1, "auto", 16, 5), (2, "2x1", 16, 5), pytest.param(4, "2x2", 8, 10, marks=pytest.mark.exhaustive)],
)
def test_copies_of_peers_are_in_the_checkpoint(
    ranks: int, parallel: str, batch: int, every: int, tmp_path: Path
) -> None:
    """All stop between two exchanges: one process after step 3, ranks at an epoch's end."""
    resumed(ranks, parallel, batch, tmp_path, options={"exchange_every": every})
    stopped, *_ = sorted(int(path.name) for path in checkpoint.steps(tmp_path / "halves" / "checkpoints"))
    assert stopped % every, "between two exchanges"


def test_peers_on_ranks_that_learn_from_copies_go_on_as_one_process(tmp_path: Path) -> None:
    """To the bit: whoever has a copy computes with the same weights."""
    how = {"drop": False, "options": {"exchange_every": 5}}
    straight = in_folder(tmp_path / "straight", 16, -1, False, {**how})
    stopped = on_ranks(2, in_folder, tmp_path / "run", 16, 2, False, {"parallel": "2x1", **how})
    assert {found.kind for found in stopped} == {"Stopped"}
    found = in_folder(tmp_path / "run", 16, -1, True, {**how})
    assert farthest(found["weights"], straight["weights"]) == 0


def test_another_mesh_goes_on(tmp_path: Path) -> None:
    """Begun by 2 peer x 2 data ranks, gone on with by 2 data ranks and then by one process."""
    how = {"drop": False, "lr": 0.02}
    straight = in_folder(tmp_path / "straight", 16, -1, False, dict(how))
    out = tmp_path / "run"
    stopped = on_ranks(4, in_folder, out, 8, 5, False, {"parallel": "2x2", **how})
    assert {found.kind for found in stopped} == {"Stopped"}
    stopped = on_ranks(2, in_folder, out, 8, 7, True, {"parallel": "data", **how})
    assert {found.kind for found in stopped} == {"Stopped"}
    found = in_folder(out, 16, -1, True, dict(how))
    assert farthest(found["weights"], straight["weights"]) < 1e-6
    for line, expected in zip(found["history"], straight["history"], strict=True):
        measured = {key: value for key, value in expected.items() if key.startswith(("train/", "val/"))}
        assert {key: line[key] for key in measured} == pytest.approx(measured, rel=1e-4)


# What travels --------------------------------------------------------------------------------------------------------


def counted(peers: int) -> list[int]:
    """The bytes of every all-reduce along "peer" in a run of two steps."""
    sent = []
    reduce = dist.all_reduce

    def counting(tensor: Tensor, *args: Any, **more: Any) -> Any:
        sent.append((dist.get_process_group_ranks(more["group"]), tensor.numel() * tensor.element_size(), tensor.dtype))
        return reduce(tensor, *args, **more)

    dist.all_reduce = counting
    tl.train(cohort(peers), loader(32), epochs=1, lr=0.05, quiet=True)
    return [size for _, size, dtype in sent if dtype == torch.float32]


def test_a_step_sends_one_number_per_class_and_sample_whatever_the_peers() -> None:
    for peers in (2, 4, 8):
        for sent in on_ranks(2, counted, peers):
            assert sent == [4 * 32 * (CLASSES + 1)] * 2


def met(every: int) -> list[list[int]]:
    """Two epochs of four steps: the bytes of every gather, and of every all-reduce along "peer" or of all ranks."""
    sent: list[list[int]] = [[], []]
    calls = dist.all_gather, dist.all_reduce

    def counting(which: int, first: Any, *given: Any, **more: Any) -> Any:
        tensor = given[0] if which == 0 else first
        sent[which].append(tensor.numel() * tensor.element_size())
        return calls[which](first, *given, **more)

    dist.all_gather, dist.all_reduce = partial(counting, 0), partial(counting, 1)
    tl.train(cohort(2, exchange_every=every), loader(16), **HOW)
    return sent


def test_ranks_meet_where_peers_exchange_and_at_an_epochs_end() -> None:
    largest = max(sum(p.numel() for p in net.parameters()) for net in cohort(2).students().values())
    for often, seldom in zip(on_ranks(2, met, 1), on_ranks(2, met, 4), strict=True):
        assert often[0] == []
        assert seldom[0] == [4 * largest] * 2  # all weights, at steps 0 and 4
        each_step = 8 * [4 * 16 * (CLASSES + 1)]
        assert (
            len(often[1]) - len(seldom[1]) == len(each_step) + 6
        )  # whether to stop or save is asked twice, not 8 times


# What goes wrong -----------------------------------------------------------------------------------------------------


def spoiled(batch: int, parallel: str) -> dict[str, Any]:
    """Peer 1 is not a number from step 3 on, on the ranks that hold it."""
    method = cohort()

    def spoil() -> None:
        next(method.students()["peer1"].parameters()).data.fill_(math.nan)

    data = loader(batch, at=3, then=spoil)
    result = tl.train(method, data, validation(), validation(), parallel=parallel, **HOW)
    here = [net for name, net in method.students().items() if name != "peer1"]
    return {"left": result.summary["left"], "weights": [v for net in here for v in net.state_dict().values()]}


def test_a_peer_that_goes_bad_leaves_on_all_ranks() -> None:
    alone = spoiled(16, "auto")
    assert alone["left"] == {"peer1": 3}
    for ranks, parallel, batch in ((2, "peers", 16), (4, "2x2", 8)):
        for found in on_ranks(ranks, spoiled, batch, parallel):
            assert found["left"] == alone["left"]
            if batch == 16:
                assert farthest(found["weights"], alone["weights"]) < 1e-6


def other(what: str, place: Path) -> None:
    """The last rank has something else than the others."""
    odd = os.environ["RANK"] == "1"
    if odd and what == "code":
        mine = Path(teacherless.__file__)
        shutil.copytree(mine.parent, place / "teacherless", ignore=shutil.ignore_patterns("__pycache__"))
        with (place / "teacherless" / "losses.py").open("a") as file:
            file.write("# as somebody left it\n")
        teacherless.__file__ = str(place / "teacherless" / mine.name)
    data = Loader(
        resident(0, 40 if odd and what == "data" else 64), batch_size=16, augment=Augment(), mean=[0.5], std=[0.3]
    )
    method = cohort(3 if odd and what == "networks" else 2)
    tl.train(method, data, epochs=1, lr=0.1 if odd and what == "settings" else 0.05, quiet=True)


@pytest.mark.parametrize("what", ["data", "settings", "code", "networks"])
def test_ranks_that_differ_are_refused(what: str, tmp_path: Path) -> None:
    found = on_ranks(2, other, what, tmp_path)
    assert found == [("InputError", f"rank 1: its {what} differ from rank 0's; all ranks need the same")] * 2


def reading_its_own(folder: Path) -> tuple[int, str]:
    """Exit code and stderr of `train dml` on a file of this rank's own; the last rank's has another pixel."""
    odd, said = os.environ["RANK"] == "1", io.StringIO()
    mine = folder / os.environ["RANK"]
    mine.mkdir()
    images, labels = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 4
    images[7, 3, 3] = odd
    np.savez(mine / "set.npz", x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8])
    words = ["--data", "npz:set.npz", "--data-dir", str(mine), "--student", "small-cnn,width=4", "--steps", "2"]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(["train", "dml", *words, "--batch-size", "8", "--out", str(folder / "run")])
    return code, said.getvalue()


def test_a_pixel_that_differs_is_refused(tmp_path: Path) -> None:
    told = "teacherless: rank 1: its data differ from rank 0's; all ranks need the same\n"
    assert on_ranks(2, reading_its_own, tmp_path) == [(2, told), (2, "")]


def hanging() -> None:
    """The last rank sleeps before its third batch."""
    data = loader(16, at=2 if os.environ["RANK"] == "1" else -1, then=partial(time.sleep, 60))
    tl.train(cohort(2), data, epochs=1, lr=0.05, timeout=3, quiet=True)


def test_a_rank_that_hangs_is_noticed_in_time() -> None:
    began = time.monotonic()
    found = on_ranks(2, hanging, waits_for=1)
    assert found[0].kind == "Lost" and "did not answer within timeout 3" in found[0].text
    assert time.monotonic() - began < 50, "the other rank sleeps for a minute"


def hanging_at_the_end() -> dict[str, Any]:
    """The last rank sleeps in the last validation."""
    val = validation()
    if os.environ["RANK"] == "1":
        val = loader(64, at=0, then=partial(time.sleep, 600))
    return tl.train(cohort(2), loader(16), val, epochs=1, lr=0.05, timeout=3, quiet=True).summary


def test_a_rank_that_hangs_at_the_end_is_noticed_in_time() -> None:
    """`on_ranks` waits for three minutes, where the other rank sleeps for ten."""
    (lost,) = on_ranks(2, hanging_at_the_end, waits_for=1)
    assert lost.kind == "Lost" and "did not answer within timeout 3" in lost.text


NO_SPLIT = "the method, with these options, does not split by students; use data"
PLACES = "for each of 2 students a place from 0 to 1, and none of these left empty"
ONE = "there are 1 students to share out"
COMMANDS = {
    "--parallel 3x1": "--parallel: found 3x1, which is 3 ranks; torchrun started 2",
    "--parallel more": "--parallel: found 'more'; must be auto, data, peers, or as 2x4 (peer x data)",
    "--parallel peers --peers 1 --set views=2": f"--parallel: found 2 ranks for peers; {ONE}",
    "--parallel peers --set update=in_turn": f"--parallel: found peers; {NO_SPLIT}",
    "--place 0,0": f"--place: found '0,0'; must be {PLACES}",
    "--sync-bn": "--sync-bn: found device cpu; synchronised batch norm needs GPUs",
    "--on-divergence revive": "--on-divergence: found revive with 2 ranks; must be isolate or stop",
    "--engine threads": "--engine: found threads; ranks compute with --engine loop",
    "--parallel data -b 400": "--batch-size: found 400 on each of 2 data ranks; the training set has 500 samples",
}


def commanded(words: str, out: Path) -> tuple[int, str]:
    """Exit code and stderr of `train dml` with these words."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(["train", "dml", "--train-samples", "500", "--out", str(out), *words.split()])
    return code, said.getvalue()


@pytest.mark.parametrize("words", COMMANDS)
def test_what_does_not_fit_is_one_line_from_the_first_rank(words: str, tmp_path: Path) -> None:
    found = on_ranks(2, commanded, words, tmp_path / "run")
    assert found == [(2, f"teacherless: {COMMANDS[words]}\n"), (2, "")]
