"""--log tensorboard: TensorBoard's own reader finds what metrics.jsonl says; and the hooks of docs/logging.md."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import images, tiny

import teacherless as tl
from teacherless.cli import main

ROOT = Path(__file__).parents[2]


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def on_the_board(out: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = accumulator.EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [(event.step, event.value) for event in board.Scalars(name)] for name in board.Tags()["scalars"]}


def in_the_file(out: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines(out):
        for name, value in line.items():
            if isinstance(value, int | float):
                found.setdefault(name, []).append((line["epoch"], float(np.float32(value))))
    return found


def fit(out: Path, **how: Any) -> None:
    data = [images(0, 10)] * 2
    tl.train(tl.DML(tiny(0), tiny(1)), data, data, out=out, lr=0.01, quiet=True, log="tensorboard", **how)


def test_the_same_numbers(tmp_path: Path) -> None:
    fit(tmp_path, epochs=3)
    found = on_the_board(tmp_path)
    assert found == in_the_file(tmp_path)
    assert {"train/mimicry", "train/top1/peer0", "val/agreement/peer1", "lr"} <= found.keys()
    assert [step for step, _ in found["val/top1/peer0"]] == [0, 1, 2]


def test_a_run_that_goes_on_has_no_epoch_twice(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def stop(line: dict[str, Any]) -> None:
        if line["epoch"] == 2:
            raise Killed  # its epoch is on the board, and in no checkpoint

    with pytest.raises(Killed):
        fit(tmp_path, epochs=4, checkpoint_every="2e", on_epoch=stop)
    assert len(on_the_board(tmp_path)["lr"]) == 3
    fit(tmp_path, epochs=4, checkpoint_every="2e", resume=True)
    assert on_the_board(tmp_path) == in_the_file(tmp_path) and len(lines(tmp_path)) == 4
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    fit(tmp_path, epochs=6, resume_anyway=True)
    assert on_the_board(tmp_path) == in_the_file(tmp_path) and len(lines(tmp_path)) == 6


def test_off_by_default_and_from_the_command_line(tmp_path: Path) -> None:
    words = ["train", "plain", "--student", "small-cnn,width=4", "--train-samples", "100", "--epochs", "1"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert not (tmp_path / "a" / "tensorboard").exists()
    assert main([*words, "--out", str(tmp_path / "b"), "--log", "tensorboard"]) == 0
    assert on_the_board(tmp_path / "b") == in_the_file(tmp_path / "b")


def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data = [images(0, 10)]
    with pytest.raises(tl.InputError, match=r"^log: needs out, the run folder"):
        tl.train(tl.Plain(tiny(0)), data, epochs=1, quiet=True, log="tensorboard")
    assert main(["train", "plain", "--log", "comet", "--out", str(tmp_path / "a")]) == 2
    assert capsys.readouterr().err == "teacherless: --log: found 'comet'; must be 'tensorboard'\n"
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert main(["train", "plain", "--small", "--log", "tensorboard", "--out", str(tmp_path / "b")]) == 2
    said = "teacherless: --log tensorboard: tensorboard is not installed; pip install 'teacherless[tensorboard]'\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "b" / "run.json").exists()


def test_the_hooks_of_the_page() -> None:
    text = (ROOT / "docs" / "logging.md").read_text(encoding="utf-8")
    hooks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(hooks) == 2
    for code in hooks:
        logged: list[tuple[dict[str, Any], int]] = []

        def log(numbers: dict[str, Any], step: int, logged: list[Any] = logged) -> None:
            assert all(type(value) in (int, float) for value in numbers.values())
            logged.append((numbers, step))

        history: list[dict[str, Any]] = []

        def train(*data: Any, on_epoch: Any, history: list[Any] = history) -> None:
            found = tl.train(*data, epochs=2, lr=0.01, quiet=True, on_epoch=on_epoch)
            history += found.history

        data = [images(0, 10)]
        loggers = {"mlflow": SimpleNamespace(log_metrics=log), "wandb": SimpleNamespace(log=log)}
        ours = {"tl": SimpleNamespace(train=train), "method": tl.Plain(tiny(0)), "train_data": data, "val_data": data}
        exec(code, {**loggers, **ours})
        assert logged == [(line, line["epoch"]) for line in history] and len(logged) == 2
