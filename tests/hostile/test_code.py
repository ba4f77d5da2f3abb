"""No code from a file ever runs. A canary is a module in the working folder, where imports are looked for: if it is
imported, or a command that a file names is run, or a pickle is read, it leaves a file behind."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.io import savemat

from teacherless.cli import main

SMALL = ["--data", "digits", "--train-samples", "64", "--student", "small-cnn,width=2", "--steps", "2"]


class Canary(NamedTuple):
    """What would run, and the file it would leave."""

    name: str  # package.module:function
    command: str  # a student that is a shell command
    ran: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.ran,))


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Canary:
    ran, module = tmp_path / "it-ran", f"canary_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{module}.py").write_text(f"open({str(ran)!r}, 'w').close()\ndef make(**_): ...\n")
    monkeypatch.chdir(tmp_path)
    return Canary(f"{module}:make", f"os:system,command=touch {ran}", ran)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of plain and of ONE, whose gate is looked for in its checkpoint."""
    base = tmp_path_factory.mktemp("runs")
    for method in ("plain", "one"):
        assert main(["train", method, *SMALL, "--out", str(base / method)]) == 0
    return base


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; `a__b` is a key in a table. Who changes a student can change its checksum too."""
    content = json.loads(path.read_text())
    for key, value in values.items():
        *tables, last = key.split("__")
        inner = content
        for table in tables:
            inner = inner[table]
        inner[last] = value
    path.write_text(json.dumps(content))
    if path.name == "config.json" and (summary := path.parents[2] / "summary.json").exists():
        change(summary, files={})


def refused(canary: Canary, capsys: pytest.CaptureFixture[str], *argv: object, words: str = "--trust-imports") -> None:
    """It ends with exit code 2 and one line that says why, and nothing ran."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err, err
    assert not canary.ran.exists()


def test_the_canary_would_sing(canary: Canary) -> None:
    """Typed by the user, each is run: otherwise these tests would prove nothing."""
    for student in (canary.name, canary.command):
        assert main(["plan", "plain", "--data", "digits", "--student", student]) == 2
        assert canary.ran.exists(), student
        canary.ran.unlink()
    pickle.loads(pickle.dumps(canary))
    assert canary.ran.exists()


@pytest.mark.parametrize("command", ["train", "plan", "compare"])
@pytest.mark.parametrize("kind", ["name", "command"])
def test_a_recipe(kind: str, command: str, canary: Canary, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path("recipe.toml")
    recipe.write_text(f'method = "plain"\nstudent = ["small-cnn", "{getattr(canary, kind)}"]\n')
    refused(canary, capsys, command, "--recipe", recipe)
    recipe.write_text(f'method = "plain"\ntrust_imports = true\nstudent = ["{getattr(canary, kind)}"]\n')
    refused(canary, capsys, command, "--recipe", recipe)
    refused(canary, capsys, "list", "recipes", recipe)


def test_a_recipe_is_trusted_on_the_command_line(canary: Canary, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.toml").write_text(f'method = "plain"\nstudent = ["{canary.name}"]\n')
    argv = ["plan", "--recipe", "recipe.toml"]
    assert main([*argv, "--trust-imports"]) == 2
    assert "must return a torch.nn.Module" in capsys.readouterr().err and canary.ran.exists()
    canary.ran.unlink()
    assert main([*argv, "--student", "small-cnn"]) == 0 and not canary.ran.exists()


def test_a_teacher_that_a_recipe_trusts(canary: Canary, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained / "plain", "teacher")
    change(Path("teacher/students/student/config.json"), architecture=canary.name)
    refused(canary, capsys, "train", "kd", *SMALL, "--teacher", "teacher")
    Path("recipe.toml").write_text('method = "kd"\nteacher = "teacher"\ntrust_imports = true\n')
    refused(canary, capsys, "train", "--recipe", "recipe.toml", *SMALL)


@pytest.mark.parametrize("kind", ["name", "command"])
def test_a_stored_run(kind: str, canary: Canary, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("plain", "one"):
        shutil.copytree(trained / method, method)
        change(Path(method, "run.json"), settings__student=[getattr(canary, kind)], settings__trust_imports=True)
        for command in (["train", "--resume", "--out"], ["evaluate"], ["analyse"]):
            refused(canary, capsys, *command, method)
        refused(canary, capsys, "predict", method, trained)


def test_a_students_config(canary: Canary, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained / "plain", "run")
    student = Path("run/students/student")
    change(student / "config.json", architecture=canary.name, trust_imports=True)
    change(Path("run/run.json"), settings__trust_imports=True)
    init = ["train", "plain", *SMALL, "--init", student]
    for command in (
        ["evaluate", "run"],
        ["evaluate", student],
        ["analyse", "run"],
        ["predict", student, trained],
        init,
    ):
        refused(canary, capsys, *command)
    refused(canary, capsys, "train", "kd", *SMALL, "--teacher", student)


def test_a_cell_of_a_comparison(canary: Canary, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["compare", *SMALL, "--methods", "plain", "--seeds", "1", "--jobs", "1", "--out", "out"]
    assert main(argv) == 0
    change(Path("out/cells/plain-s0/students/student/config.json"), architecture=canary.name)
    assert main(argv) == 4
    assert "plain, seed 0 failed" in (shown := capsys.readouterr().out) and "names code to run" in shown
    assert not canary.ran.exists()


@pytest.mark.parametrize("arguments", [
    {"pretrained": True}, {"seed": 1}, {"size": [8, 8]}, {"depth": 10**7}, {"width": 10**7}, {"width": -1},
    {"width": [2] * 10**5}, {"checkpoint_path": "x"}, {"width": 2.5}, {"width": 1e308}, {"width": None},
])  # fmt: skip
def test_arguments_in_a_config(
    arguments: dict[str, Any], canary: Canary, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "plain", "run")
    config = Path("run/students/student/config.json")
    change(config, **{f"arguments__{key}": value for key, value in arguments.items()})
    for trust in ([], ["--trust-imports"]):
        refused(canary, capsys, "evaluate", "run", *trust, words="students/student")


def test_a_network_is_not_built_before_it_fits_its_weights(
    zoo: None, trained: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A depth of 10^5 would be a hundred million tensors. timm is asked for nothing that it would have to fetch."""
    shutil.copytree(trained / "plain", "run")
    config = Path("run/students/student/config.json")
    known = {"num_classes": 10, "in_channels": 1}
    for architecture, more, words in (
        ("wrn-40-2", {}, "another architecture"),
        ("timm/vit_tiny_patch16_224", {"depth": 10**5}, "more than"),
        ("timm/resnet18", {"pretrained_cfg": "x"}, "pretrained_cfg"),
        ("timm/resnet18", {"block": "x"}, "unknown argument"),
        ("timm/hf-hub:me/mine", {}, "names code"),
        ("torchvision/../x", {}, "unknown model"),
    ):
        change(config, architecture=architecture, arguments=known | more)
        refused(canary, capsys, "evaluate", "run", words=words)


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "SHA256SUMS"])
def test_a_checkpoint(file: str, canary: Canary, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained / "plain", "run")
    Path("run/summary.json").unlink()
    for folder in Path("run/checkpoints").iterdir():
        (folder / file).write_bytes(pickle.dumps(canary))
    refused(canary, capsys, "train", "--resume", "--out", "run", words="no whole checkpoint")


def objects(canary: Canary) -> np.ndarray[Any, Any]:
    return np.array([canary], dtype=object)


def write_npz(root: Path, canary: Canary) -> str:
    np.savez(root / "set.npz", x_train=objects(canary), y_train=objects(canary))
    return "npz:set.npz"


def write_mat(root: Path, canary: Canary) -> str:
    for part in ("train", "test"):
        (root / f"{part}_32x32.mat").write_bytes(pickle.dumps(canary))
    return "svhn"


def write_mat_of_pickles(root: Path, canary: Canary) -> str:
    for part in ("train", "test"):
        code = np.frombuffer(pickle.dumps(canary), dtype=np.uint8)
        savemat(root / f"{part}_32x32.mat", {"X": np.array([[code]], dtype=object), "y": f"exec(open({canary.ran}))"})
    return "svhn"


def write_pickled_cifar(root: Path, canary: Canary) -> str:
    """The Python version of CIFAR-10, which is pickles, where the binary one is looked for."""
    for folder in ("cifar-10-batches-bin", "cifar-10-batches-py"):
        (root / folder).mkdir()
        for i in range(1, 6):
            (root / folder / f"data_batch_{i}.bin").write_bytes(pickle.dumps(canary))
            (root / folder / f"data_batch_{i}").write_bytes(pickle.dumps(canary))
    return "cifar10"


def write_images(root: Path, canary: Canary) -> str:
    """Images that are pickles, in a folder of images."""
    for c in ("a", "b"):
        (root / "photos" / c).mkdir(parents=True)
        for i in range(10):
            (root / "photos" / c / f"{i}.png").write_bytes(pickle.dumps(canary))
    return "photos"


@pytest.mark.parametrize("write", [write_npz, write_mat, write_mat_of_pickles, write_pickled_cifar, write_images])
def test_data(
    write: Callable[[Path, Canary], str], canary: Canary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path, canary)
    refused(canary, capsys, "train", "plain", "--data", data, "--data-dir", tmp_path, "--steps", "1", words=":")


def test_an_archive_writes_only_where_it_should(
    canary: Canary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An archive in the cache whose members point elsewhere, or are links, or devices."""
    monkeypatch.setenv("TEACHERLESS_CACHE", str(tmp_path / "cache"))
    from teacherless.data.sets import cifar

    for kind in (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        where = tmp_path / str(kind)
        where.mkdir()
        with tarfile.open(where / "x.tar.gz", "w:gz") as tar:
            for name in ("../../it-ran", str(canary.ran), f"{cifar.CIFAR10.folder}/../../it-ran", cifar.CIFAR10.test):
                member = tarfile.TarInfo(name)
                member.type, member.size, member.linkname = kind, 4 if kind == tarfile.REGTYPE else 0, str(canary.ran)
                tar.addfile(member, io.BytesIO(b"boom"))
        (where / "root").mkdir()
        with pytest.raises(Exception):  # noqa: B017
            cifar._unpack(cifar.CIFAR10, where / "x.tar.gz", where / "root" / cifar.CIFAR10.folder)
        assert not canary.ran.exists()
        assert {p.name for p in where.iterdir()} == {"x.tar.gz", "root"}
