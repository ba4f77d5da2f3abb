"""What a run shows while it runs: on terminals of several kinds, and where there is none."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny
from terminal import run

import teacherless as tl
from teacherless.evaluation.metrics import agreement
from teacherless.training import live
from teacherless.training.live import View, duration, sparkline

TRAINING = """
import sys, time
from teacherless.training import live
live.SHARE = 10  # where CPU time is dear, hardly anything would be drawn
students, pace = sys.argv[1].split(","), float(sys.argv[2])
shown = live.view(students, 4, 40)
shown.open([])
for epoch in range(4):
    for step in range(10):
        shown.step()
        time.sleep(0.03 * pace)
    line = {"epoch": epoch, "step": 10 * (epoch + 1), "img_per_s": 1234.5, "train/ce": 1.0, "train/mimicry": 0.25,
            "train/loss": 1.25}
    for i, name in enumerate(students):
        line |= {f"train/top1/{name}": 80.0 + i, f"train/nll/{name}": 0.5, f"val/top1/{name}": 70.0 + 5 * epoch + i,
                 f"val/agreement/{name}": 90.0 + i}
    shown.epoch(line)
    time.sleep(0.7 * pace * (epoch > 0))
shown.close()
"""
COMMAND = [sys.executable, "-c", TRAINING]
DRAWN = "1"  # so slow that every epoch is drawn
QUICK = "0.05"  # where only the end counts


def test_a_row_per_student() -> None:
    shown, written = run([*COMMAND, "peer0,peer1", DRAWN], 100)
    assert shown[:3] == [
        "student  val top-1              last  agreement %  train top-1  train loss",
        "peer0    ▁▃▅█                  85.00        90.00        80.00      0.5000",
        "peer1    ▁▄▆█                  86.00        91.00        81.00      0.5000",
    ]
    assert shown[3].split() == ["epoch", "4/4", "loss", "1.2500", "mimicry", "/", "ce", "0.25", "1,234", "img/s"]
    assert len([line for line in shown if line]) == 5, "one picture, and its bar"
    assert "epoch 2/4" in written and re.search(r"\d s left", written), "it was drawn while the run ran"


def test_a_narrow_terminal_has_fewer_columns() -> None:
    shown, _ = run([*COMMAND, "peer0,peer1", QUICK], 40)
    assert shown[:2] == ["student  val top-1    last  agreement %", "peer0    ▁▃▅█        85.00        90.00"]
    assert all(len(line) <= 40 for line in shown) and "1,234 img/s" in "".join(shown)
    shown, _ = run([*COMMAND, "peer0", QUICK], 20)
    assert shown[:2] == ["student  val top-1", "peer0    ▁▃▆█"]


def test_a_terminal_that_becomes_narrow() -> None:
    shown, _ = run([*COMMAND, "peer0,peer1", DRAWN], 100, then=lambda so_far: 40 if "epoch 3/4" in so_far else None)
    assert "student  val top-1    last  agreement %" in shown[-7:]
    assert shown[-6].startswith("peer0    ▁▃▅█"), shown


def test_many_students_in_a_low_terminal() -> None:
    names = [f"peer{i}" for i in range(20)]
    shown, written = run([*COMMAND, ",".join(names), DRAWN], 100, height=12)
    assert "and 16 more" in written and max(map(len, re.findall("(?:\x1b\\[1A)+", written))) < 4 * 21
    last = "\n".join(shown)
    assert all(f"\n{name} " in last for name in names), "in the end all stay"


def test_no_color() -> None:
    colour = re.compile(r"\x1b\[[\d;]*3[0-8]")
    assert colour.search(run([*COMMAND, "peer0", QUICK], 100)[1])
    assert not colour.search(run([*COMMAND, "peer0", QUICK], 100, NO_COLOR="1")[1])


def test_an_encoding_without_blocks() -> None:
    shown, _ = run([*COMMAND, "peer0,peer1", QUICK], 40, PYTHONIOENCODING="ascii:backslashreplace")
    assert shown[1] == "peer0    .-+@        85.00        90.00"


LINES = [f"epoch {e}/4  loss 1.2500  top-1 peer0 80.00 / {65 + 5 * e}.00  peer1 81.00 / {66 + 5 * e}.00  "
         "agreement 90.00 %  mimicry / ce 0.25  1,234 img/s" for e in (1, 2, 3, 4)]  # fmt: skip


def test_a_dumb_terminal_and_none_get_the_same_facts_as_lines() -> None:
    dumb, written = run([*COMMAND, "peer0,peer1", QUICK], 200, TERM="dumb")
    assert "\x1b" not in written
    piped = subprocess.run([*COMMAND, "peer0,peer1", QUICK], capture_output=True, text=True, check=True, timeout=60)
    coloured = subprocess.run([*COMMAND, "peer0,peer1", QUICK], capture_output=True, text=True, check=True, timeout=60,
                              env={**os.environ, "FORCE_COLOR": "1"})  # fmt: skip
    for lines in (dumb[:4], piped.stdout.splitlines(), coloured.stdout.splitlines()):
        assert [re.sub(r"  [\d.]+ s left$", "", line) for line in lines] == LINES
        assert [line.endswith("left") for line in lines] == [True, True, True, False]


def test_a_command_in_a_terminal(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", "dml", "--student", "small-cnn,width=4", "--train-samples", "100", "--batch-size", "32"]
    command = [sys.executable, "-m", "teacherless", *words, "--epochs", "3", "--peers", "3", "--out", str(out)]
    shown, _ = run(command, 100, height=50)
    line = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("peer0", "peer1", "peer2"):
        (row,) = [row.split() for row in shown if row.startswith(name)]
        values = [line[f"{key}/{name}"] for key in ("val/top1", "val/agreement", "train/top1")]
        assert row[2:5] == [f"{value:.2f}" for value in values]
    text = "\n".join(shown)
    assert f"mimicry / ce {line['train/mimicry'] / line['train/ce']:.3g}" in text and "ship peer" in text


# Its parts -----------------------------------------------------------------------------------------------------------


def line(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "step": 5 * (epoch + 1), "img_per_s": 10.0, "train/loss": 1.0, "train/ce": 1.0,
            "train/top1/a": 50.0, "train/nll/a": 1.0, **more}  # fmt: skip


def test_the_time_left_is_of_this_session(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for batches in (50, None):
        view = View(["a"], 10, batches)
        view.open([line(0), line(1)])  # a resumed run: what was before took another machine's time
        assert view.facts() == ["loss 1.0000", "10 img/s"]
        view.lines.append(line(2))
        view.done, now[0] = 15, now[0] + 3
        assert view.facts()[-1] == "21 s left"


def test_phases_count_their_own_steps() -> None:
    view = View(["a"], 4, 20)
    view.open([line(0, phase="hint"), line(1, phase="hint"), {**line(2), "step": 5, "phase": "kd"}])
    assert view.far() == 0.75


def test_what_is_not_known_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    view = View(["a", "b"], 2, None)
    view.open([])
    view.epoch({**line(0), "train/loss": None, "left": {"b": 3}, "val/top1/a": None})
    assert capsys.readouterr().out == (
        f"epoch 1/2  loss not finite  top-1 a 50.00 / -  (b not finite since step 3)  10 img/s  {duration(0.0)} left\n"
    )


def test_sparklines() -> None:
    assert sparkline([0, 50, 100], 0, 100, 20) == "▁▅█"
    assert sparkline([0.0] * 50 + [100.0] * 50, 0, 100, 10) == "▁▁▁▁▁█████"
    assert sparkline([None, 5.0, None], 5, 5, 20) == "-▁-" and sparkline([], 0, 0, 20) == ""
    assert len(sparkline([1.0] * 7919, 0, 1, 20)) == 20


def test_drawing_takes_a_two_hundredth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SHARE", 20)
    over, drawn = threading.Event(), []

    def draw() -> None:
        drawn.append(time.thread_time())
        while time.thread_time() < drawn[-1] + 0.02:
            pass

    thread = threading.Thread(target=live.seldom, args=(over, draw, 0.01))
    thread.start()
    time.sleep(1)
    over.set()
    thread.join()
    assert 2 <= len(drawn) <= 4, "each drawing but the first is followed by 0.4 s without one"


def test_agreement() -> None:
    logits = {name: torch.eye(4)[torch.tensor(guess)] for name, guess in
              (("a", [0, 1, 2, 3]), ("b", [0, 1, 2, 0]), ("c", [0, 1, 0, 0]))}  # fmt: skip
    logits["gone"] = torch.full((4, 4), torch.nan)
    found = {name: each["agreement"] for name, each in agreement(logits).items()}
    assert found == pytest.approx({"a": (75 + 50) / 2, "b": (75 + 75) / 2, "c": (50 + 75) / 2})
    assert agreement({"a": logits["a"], "gone": logits["gone"]}) == {}


def test_agreement_is_recorded_of_several_students() -> None:
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = [(x, torch.arange(20) % 5)]
    found = tl.train(tl.DML(tiny(0), tiny(1)), data, data, epochs=1, quiet=True).history[0]
    assert found["val/agreement/peer0"] == found["val/agreement/peer1"]
    assert not any(
        "agreement" in key for key in tl.train(tl.Plain(tiny(0)), data, data, epochs=1, quiet=True).history[0]
    )


def test_durations() -> None:
    assert [duration(s) for s in (0.34, 59, 61, 3600, 9000)] == ["0.3 s", "59 s", "1 min", "1 h 0 min", "2 h 30 min"]
