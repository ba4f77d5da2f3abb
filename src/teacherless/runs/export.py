"""A trained network as a file for other programs: written, read again without us, compared, or refused.

What is compared are logits of real images (validation's, then training's), of the network here and of the exported file
in a process that cannot import teacherless. A torch program and safetensors must give the same bits in batches of the
same size; ONNX, which computes in another order, 1e-4 (1e-5 of the largest logit) and the same classes; half precision
the same class of 99.5 % of the images.
"""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from teacherless.data.augment.distort import normalise
from teacherless.errors import InputError, extra, first_line, unknown
from teacherless.files import disk, schemas
from teacherless.methods._parts import MeanProbability
from teacherless.models.files import CONFIG, WEIGHTS, described, own_state
from teacherless.models.foreign.wrapper import Foreign
from teacherless.runs import card, reread
from teacherless.runs.config import Run, as_given
from teacherless.runs.execute import execute
from teacherless.runs.results import source_of
from teacherless.runs.stored import StoredRun, read_run, run_folder
from teacherless.training import checkpoint
from teacherless.training.settings import read

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Format = Literal["safetensors", "torch", "onnx"]
FILES: dict[str, str] = {"safetensors": WEIGHTS, "torch": "model.pt2", "onnx": "model.onnx"}
IMAGES = 256  # that are compared
BATCHES = (1, 7, 64)
CLOSE, CLOSE_SHARE = 1e-4, 1e-5  # of ONNX's logits to ours
SAME_CLASS = 0.995  # of half precision's


class Exported(NamedTuple):
    """What was written, and how near it is to the network here."""

    file: Path
    name: str  # of the student, or "ensemble"
    size: int  # bytes
    images: int  # that were compared
    difference: float  # of two logits, the largest
    agree: float  # share of the images that get the same class
    ms: dict[str, float]  # an image, by the batch's size


class Program(nn.Module):
    """What is exported: a network, and what stands around it.

    Args:
        net: maps `[B, C, H, W]` to logits.
        half: compute in half precision; logits are float32 all the same.
        pixels: mean and std, for a program that reads uint8 `[B, H, W, C]`.
    """

    def __init__(self, net: nn.Module, *, half: bool, pixels: tuple[list[float], list[float]] | None) -> None:
        super().__init__()
        self.net = net.half() if half else net
        self.in_half, self.pixels = half, pixels

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, C]`."""
        x = normalise(images, *self.pixels) if self.pixels else images
        logits: Tensor = self.net(x.half() if self.in_half else x)
        return logits.float()


def export(
    path: Path,
    *,
    which: str = "best",
    format: Format,
    dynamic_batch: bool = False,
    half: bool = False,
    with_preprocessing: bool = False,
    out: Path | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    trust_imports: bool = False,
) -> Exported:
    """Write a folder with one network of a finished run: the file, and config.json, which says how images are read.

    Args:
        path: a run folder, or a student's folder.
        which: a student's name, "best" (the one the run says to ship), or "ensemble".
        format: safetensors, the plain architecture's weights; torch, a program of torch.export; onnx.
        dynamic_batch: the program takes batches of any size; else of 1.
        half: in half precision.
        with_preprocessing: the program reads uint8 `[B, H, W, C]`, as decoded, and normalises them itself.
        out: the folder (default: export/NAME-FORMAT in the run's folder).
        data: what real images are taken from (default: what the run was trained on).
        data_dir: where that data's files are.
        trust_imports: import the code that a config.json names.

    Raises: InputError for a run that is not finished, a network it does not have, an extra that is missing, a network
        that cannot be exported, and a file that does not predict what the network does; then nothing is kept.
    """
    of_programs = {"dynamic-batch": dynamic_batch, "with-preprocessing": with_preprocessing,
                   "which ensemble": which == "ensemble"}  # fmt: skip
    if format == "safetensors" and any(of_programs.values()):
        flag = next(flag for flag, given in of_programs.items() if given)
        raise InputError(f"--{flag}: is of a program; safetensors holds weights: --format torch or onnx")
    if format == "onnx":
        extra("onnxscript", "--format onnx", name="onnx")  # what torch's exporter needs
        extra("onnxruntime", "--format onnx", name="onnx")
    stored = read_run(path, trust_imports=trust_imports)
    folder = run_folder(path)
    if folder and schemas.summary(folder) is None:
        raise InputError(f"{path}: is not finished; teacherless train --out {folder} --resume goes on with it")
    name = stored.chosen if which == "best" else which
    net, config = _chosen(name, stored, folder, trust_imports)
    pixels = _real_images(path, stored, config, data, data_dir)
    images = pixels if with_preprocessing else normalise(pixels, config["mean"], config["std"])
    images = images.clone(memory_format=torch.contiguous_format)  # as a file's; strides decide how a CPU convolves
    sizes = BATCHES if dynamic_batch or format == "safetensors" else BATCHES[:1]
    stats = (config["mean"], config["std"]) if with_preprocessing else None
    net = copy.deepcopy(net).eval()
    expected, _ = reread.run(Program(net, half=False, pixels=stats), images, list(sizes))
    program = Program(net, half=half, pixels=stats).eval()
    home = path if folder in (None, path.resolve()) else folder
    out = out or home / "export" / f"{name}-{format}{'-half' * half}"
    with disk.whole_folder(out) as part, tempfile.TemporaryDirectory() as work:
        _write(part / FILES[format], program, images, dynamic_batch, Path(work))
        about = {**described(net, config), "export": {
            "format": format, "half": half, "batch": "any" if len(sizes) > 1 else 1,
            "images": "uint8 [B, H, W, C]" if stats else "float32 [B, C, H, W]"}}  # fmt: skip
        disk.write_json(part / CONFIG, about)
        disk.write(part / card.NAME, card.text(folder, name, about))
        again, ms = _reread(part, format, images, sizes, Path(work), "net.net." if isinstance(net, Foreign) else "net.")
        difference, agree = _compared(expected, again, format, half)
        size = (part / FILES[format]).stat().st_size
    return Exported(out / FILES[format], name, size, len(images), difference, agree, ms)


# Which network, which images -----------------------------------------------------------------------------------------


def _chosen(
    name: str, stored: StoredRun, folder: Path | None, trust_imports: bool
) -> tuple[nn.Module, Mapping[str, Any]]:
    """The network and its config. Raises: InputError for one that the run does not have."""
    if name in stored.students:
        return stored.students[name]
    summary = schemas.summary(folder) if folder else None
    if name != "ensemble" or summary is None:
        raise unknown("student", name, [*stored.students, "best", "ensemble"])
    if summary["ensemble"] is None:
        raise InputError(f"--which: {summary['method']} has no ensemble; it has {', '.join(stored.students)}")
    assert folder is not None
    of = stored.students[stored.chosen].config
    config = {key: of[key] for key in of if key in schemas.OF_DATA} | {"architecture": None, "arguments": {}}
    if summary["method"] == "dml":
        return MeanProbability(student.net for student in stored.students.values()), config
    return _with_helpers(folder, trust_imports), config


def _with_helpers(folder: Path, trust_imports: bool) -> nn.Module:
    """An ensemble that is more than its students: a gate, exits, earlier networks. The checkpoint holds those."""
    if checkpoint.read(folder / "checkpoints") is None:
        raise InputError(f"--which: the ensemble's own weights are in {folder / 'checkpoints'}, which is empty")
    settings = schemas.stored(folder)
    assert settings is not None
    run = read(Run, {**as_given(settings["settings"]), "trust_imports": trust_imports}, where=f"{folder}: ")
    ensemble = execute(run, folder, resume=True, quiet=True).method.ensemble()
    assert ensemble is not None
    return ensemble.cpu()


def _real_images(
    path: Path, stored: StoredRun, config: Mapping[str, Any], data: str | None, data_dir: Path | None
) -> Tensor:
    """uint8 `[at most 256, H, W, C]`, of validation and training; test is read for nothing but a run's end.

    Raises: InputError for images that the network does not read.
    """
    source = source_of(path, stored, data, data_dir)
    splits = [split for split in (source.val, source.train) if split]
    pixels = torch.cat([split.sample(torch.arange(min(IMAGES, len(split)))) for split in splits])[:IMAGES]
    wanted = [*config["input_size"], config["channels"]]
    if list(pixels.shape[1:]) != wanted or not len(pixels):
        raise InputError(f"--data: {source.name} has images {list(pixels.shape[1:])}; the network reads {wanted}")
    return pixels


# Written, read, compared ---------------------------------------------------------------------------------------------


def _write(file: Path, program: Program, images: Tensor, dynamic: bool, work: Path) -> None:
    """Raises: InputError for a network that torch cannot export."""
    if file.name == WEIGHTS:
        inner = program.net.net if isinstance(program.net, Foreign) else program.net
        save_file(own_state(inner), file, metadata={"format": "pt"})
        program, file, dynamic = copy.deepcopy(program).float(), work / "skeleton.pt2", True
        program.in_half = False
        for tensor in program.state_dict().values():
            tensor.zero_()  # what it predicts then comes from the weights' file alone
    example = (images[:1].expand(2, *images.shape[1:]).clone() if dynamic else images[:1],)
    shapes: Any = {"images": {0: torch.export.Dim.DYNAMIC}} if dynamic else None
    try:
        with _quietly(), torch.no_grad():
            if file.suffix == ".onnx":
                torch.onnx.export(program, example, file, input_names=["images"], output_names=["logits"],
                                  dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False)  # fmt: skip
            else:
                torch.export.save(torch.export.export(program, example, dynamic_shapes=shapes), file)
    except Exception as error:  # the exporter may raise anything
        raise InputError(f"{type(program.net).__name__}: cannot be exported: {first_line(error)}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """The exporter's remarks are not about the user's network."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(level)


def _reread(
    folder: Path, format: str, images: Tensor, sizes: tuple[int, ...], work: Path, prefix: str
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Logits and times of the file in a fresh process. Raises: InputError if it fails there."""
    save_file({"images": images}, work / "images.safetensors")
    words = [folder, format, work, json.dumps(sizes), torch.get_num_threads(), prefix]
    command = [sys.executable, "-P", reread.__file__, *map(str, words)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        why = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise InputError(f"{FILES[format]}: cannot be used without teacherless: {why}")
    return load_file(work / "logits.safetensors"), json.loads(done.stdout.splitlines()[-1])


def _compared(
    expected: Mapping[str, Tensor], again: Mapping[str, Tensor], format: str, half: bool
) -> tuple[float, float]:
    """The largest difference, and the share of images with the same class. Raises: InputError if it is too much."""
    difference = max(float((again[size] - logits).abs().max()) for size, logits in expected.items())
    agree = min(float((again[size].argmax(1) == z.argmax(1)).double().mean()) for size, z in expected.items())
    largest = max(float(logits.abs().max()) for logits in expected.values())
    allowed = max(CLOSE, CLOSE_SHARE * largest) if format == "onnx" else 0.0
    if not (agree >= SAME_CLASS if half else difference <= allowed and agree == 1):
        raise InputError(f"{FILES[format]}: does not predict what the network does: logits differ by {difference:.2g} "
                         f"(of {largest:.2g}), classes on {100 * (1 - agree):.1f} %; nothing was kept")  # fmt: skip
    return difference, agree
