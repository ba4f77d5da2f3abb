"""The page of a run and of a comparison: what stands on it, whatever the folder holds."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from formats import write_market
from scipy.stats import binomtest

from teacherless.cli import app, main
from teacherless.cli.given import merged
from teacherless.files import disk, schemas
from teacherless.runs.config import Run
from teacherless.runs.execute import execute
from teacherless.runs.explain import lessons
from teacherless.runs.merge import command_of
from teacherless.study import mistakes, report, verdicts
from teacherless.study.charts import ticks
from teacherless.study.churn import churn, often_wrong
from teacherless.study.compare import compare
from teacherless.training.record import Recorder

COMMON: dict[str, Any] = {"epochs": 3, "train_samples": 100, "batch_size": 32, "student": ("small-cnn,width=4",)}


class Elements(HTMLParser):
    """Names, attributes and texts of everything on a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page(folder: Path) -> str:
    """The page, after the checks that hold for every one."""
    found = report.write(folder).read_text(encoding="utf-8")
    assert len(found.encode()) < report.LARGEST
    elements = Elements(found)
    policy = next(a["content"] for t, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'")
    assert [t for t, _ in elements.tags].count("script") == 1
    assert not any(t in ("iframe", "object", "embed", "form", "base") for t, _ in elements.tags)
    for _, attributes in elements.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "@import" not in found and not re.search(r"url\((?!data:)", found)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("run") / "dml"
    execute(Run(method="dml", peers=8, **COMMON), out, quiet=True)
    return out


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("comparison") / "c"
    compare(Run(method="plain", **COMMON), ["dml"], 3, out, jobs=1, quiet=True)
    return out


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_run_of_eight_peers(run: Path) -> None:
    found = page(run)
    assert "one run cannot say" in found and "peer7" in found and "peer8" not in found
    assert schemas.summary(run)["chosen"] + " (to ship)" in found  # type: ignore[index]
    assert json.loads((run / "run.json").read_text())["data"]["fingerprint"] in found
    assert found.count("<figure") == 7  # five panels, the terms of the loss, who teaches whom


def test_a_run_killed_halfway(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    (folder / "summary.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(lines[0] + "\n" + lines[1][:40])
    assert "not finished: epoch 1 of 3" in page(folder)
    (folder / "metrics.jsonl").unlink()
    assert "not finished: epoch 0 of 3" in page(folder)


def test_a_comparison(comparison: Path) -> None:
    found = page(comparison)
    table = json.loads((comparison / "compare.json").read_text())
    difference = table["methods"]["dml"]["difference"]
    low, high = difference["corrected"]
    assert f"{difference['mean']:+.2f} points of top-1 [{low:+.2f}, {high:+.2f}], 3 seeds, for" in found
    assert verdicts.word((low, high)) in found
    assert found.count('class="seed"') == 9  # the differences of three seeds, and the accuracies of six runs
    assert f"{table['methods']['plain']['inference']['params']:,}" in found
    both = difference["both"]
    assert f"[{both[0]:+.2f}, {both[1]:+.2f}], {verdicts.word(both)}." in found
    assert all(0 <= row["churn"] <= 100 for row in table["methods"].values())
    assert 'alt="often-wrong"' in found and found.count('class="arrow"') == 2  # two peers teach each other


def test_a_comparison_that_is_not_finished_and_one_with_a_failed_cell(comparison: Path, tmp_path: Path) -> None:
    folder = copied(comparison, tmp_path)
    (folder / "compare.json").unlink()
    (folder / "cells" / "dml-s2" / "summary.json").unlink()
    assert "not finished: 5 runs done, 6 begun" in page(folder)
    disk.write_json(folder / "cells" / "dml-s2" / "failed.json", {"failed": "training <b>diverged</b>"})
    assert "seed 2: training &lt;b&gt;diverged" in page(folder)
    shutil.rmtree(folder / "cells" / "dml-s1")
    shutil.rmtree(folder / "cells" / "plain-s1")
    shutil.rmtree(folder / "cells" / "plain-s2")
    assert "Give at least 3 seeds" in page(folder)  # one seed is left


def test_names_are_names_whatever_they_are(run: Path, tmp_path: Path) -> None:
    """A class, a data set and a student that are called like code."""
    folder, name = copied(run, tmp_path), "<script>alert(1)</script>"
    stored = json.loads((folder / "run.json").read_text())
    stored["data"]["name"] = stored["settings"]["data"] = name
    disk.write_json(folder / "run.json", stored)
    evil = folder / "metrics.jsonl"
    evil.write_text(evil.read_text().replace("peer7", "</svg>'><script>alert(1)</script>"))
    summary = json.loads((folder / "summary.json").read_text())
    summary["students"][name] = summary["students"].pop("peer7")
    disk.write_json(folder / "summary.json", summary)
    assert "alert(1)" in page(folder)


@pytest.mark.parametrize("command", ["train", "compare"])
def test_re_identification(command: str, tmp_path: Path) -> None:
    """Persons in Market-1501's own format."""
    write_market(tmp_path / "market", persons=6)
    data = ["--data", "market1501", "--data-dir", str(tmp_path / "market"), "--img-size", "16", "--val-fraction", "0.2"]
    compared = ["compare", "--methods", "dml", "--seeds", "2", "--jobs", "1"]
    words = ["train", "dml", "--peers", "2"] if command == "train" else compared
    out = tmp_path / "out"
    assert main([*words, *data, "--student", "small-cnn,width=4", "--steps", "3", "-b", "8", "--out", str(out)]) == 0
    found = page(out)
    assert "test mAP %" in found and ("% mAP on test" if command == "train" else "points of mAP") in found
    if command == "train":
        mean = schemas.summary(out)["students"]["peer0"]["test_map"]  # type: ignore[index]
        assert f"{mean:.2f}" in found and "test rank-1 %" in found


def test_figures_that_are_too_large_are_named(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    (folder / "analysis").mkdir()
    for name, size in (("a", 1000), ("b", 2_000_000)):
        (folder / "analysis" / f"{name}.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>" + " " * size)
    found = page(folder)
    assert 'alt="analysis/a"' in found and "analysis/b: too large for this page" in found


def test_two_hundred_classes_one_of_them_named_like_a_script(run: Path, tmp_path: Path) -> None:
    folder, name = copied(run, tmp_path), "<script>alert(1)</script>"
    out = folder / "evaluation" / "many-val"
    classes = [name, *map(str, range(199))]
    mistakes.confusion(torch.eye(200, dtype=torch.long).tolist(), classes, name, out / "confusion")
    mistakes.sheet(torch.zeros(24, 64, 64, 3, dtype=torch.uint8), [name] * 24, name, out / "mistakes")
    found = page(folder)
    assert 'alt="evaluation/many-val/mistakes"' in found and "too large" not in found


def test_a_page_gets_what_evaluate_finds_later(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(run, tmp_path)
    assert "teacherless evaluate RUN --split val" in page(folder)
    assert main(["evaluate", str(folder), "--split", "val"]) == 0
    found = (folder / report.NAME).read_text(encoding="utf-8")
    assert 'alt="evaluation/digits-val/mistakes"' in found and "teacherless evaluate RUN" not in found


def test_what_the_doctor_finds_is_said(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    finding = {"finding": "peers collapsed", "evidence": "they agree on 100 %", "advice": "other starts"}
    disk.write_json(folder / "summary.json", summary | {"doctor": [finding]})
    assert "peers collapsed: they agree on 100 %" in page(folder)


def test_who_teaches_whom() -> None:
    def edges(method: str, students: int = 1, **settings: Any) -> set[tuple[str, str]]:
        return set(lessons(Run(method=method, **settings), students).edges)

    everyone = {(f"peer{i}", f"peer{j}") for i in range(3) for j in range(3) if i != j}
    assert edges("dml", 3) == everyone
    assert edges("dml", 3, set={"topology": "ring"}) == {("peer0", "peer1"), ("peer1", "peer2"), ("peer2", "peer0")}
    assert edges("dml", 3, set={"topology": "star"}) == {("peer0", "peer1"), ("peer0", "peer2")} | {
        (f"peer{i}", "peer0") for i in (1, 2)
    }
    assert len(edges("one")) == 6
    assert edges("kd", teacher="somewhere") == {("teacher", "student")}
    assert edges("ddgsd") == {("student", "student")}
    assert edges("plain") == edges("label-smoothing") == set()


def test_churn_and_what_is_often_wrong() -> None:
    a, b, c = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 0, 0])
    assert churn([a, b]) == 25 and churn([a]) is None
    assert churn([a, b, c]) == pytest.approx(100 * (1 + 2 + 1) / 12)
    found = often_wrong(torch.stack([a, b, c]), torch.tensor([0, 1, 2, 3]))
    assert [(w["row"], w["wrong"], w["taken_for"]) for w in found] == [(3, 2, 0), (2, 1, 0)]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "dml", "--peers", "3", "--set", "temperature=2", "--set", "update=in_turn", "--lr", "0.03"],
        ["train", "plain", "--data", "a b/it's", "--student", "resnet8,width=4", "--steps", "7", "--no-nesterov"],
        ["train", "dml", "--student", "resnet8", "--student", "small-cnn,lr=0.05", "--decay-milestones", "3", "5"],
        ["train", "one", "--opt", "adam", "--opt-betas", "0.8", "0.99", "--amp", "--seed", "7", "--small"],
    ],
)
def test_the_command_gives_the_same_settings(words: list[str]) -> None:
    def settings(words: list[str]) -> Run:
        _, bound, _ = app.parse_args(words)
        return merged(bound.arguments["method"], bound.arguments["flags"])

    asked = settings(words)
    stored = json.loads(json.dumps(asked.model_dump(mode="json")))
    command = command_of(["train", stored["method"]], stored)
    assert settings(shlex.split(command)[1:]) == asked


def test_the_words_of_a_verdict() -> None:
    intervals = (None, (0.1, 2.0), (-2.0, -0.1), (-0.1, 0.2), (-0.1, 0.3), (0.05, 0.1))
    said = [verdicts.word(interval) for interval in intervals]
    assert said == ["INCONCLUSIVE", "BEATS", "DOES NOT BEAT", "DOES NOT BEAT", "INCONCLUSIVE", "BEATS"]


def test_the_interval_of_a_share_is_scipys() -> None:
    for right, count in ((0, 10), (5, 10), (338, 359), (359, 359)):
        expected = binomtest(right, count).proportion_ci(method="wilson")
        assert verdicts.wilson(right / count, count) == pytest.approx(tuple(expected), abs=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.7, 12.2), (90.11, 90.12), (0.0, 1e-9), (1e6, 3e6)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 * abs(low) <= tick <= high + 1e-9 * abs(high) for tick in found)


def test_a_report_that_cannot_be_written_fails_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is neither a run nor a comparison" in capsys.readouterr().err
    monkeypatch.setattr(report, "render", lambda page: 1 / 0)
    assert report.write_or_say(run) is None
    assert "no report.html" in capsys.readouterr().err


def test_a_run_that_diverged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r"
    words = ["train", "plain", "--student", "small-cnn,width=4", "--train-samples", "100", "-b", "32"]
    assert main([*words, "--epochs", "5", "--lr", "1e9", "--out", str(out)]) == 4
    said = capsys.readouterr()
    why = said.err.removeprefix("teacherless: ").strip()
    assert why.startswith("training diverged") and f"report: {out / report.NAME}" in said.out
    found = page(out)
    assert "<b>FAILED</b>" in found and why in found and "seed 0, failed: epoch" in found
    assert main(["train", "--out", str(out), "--resume"]) == 4, "it is tried again, to the same end"
    (out / "failed.json").unlink()
    assert "<b>FAILED</b>" not in page(out), "one that goes on has not failed"


def test_a_run_that_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    out = tmp_path / "r"
    end = Recorder.epoch

    def stop(self: Recorder, epoch: int, *args: Any, **more: Any) -> Any:
        line = end(self, epoch, *args, **more)
        if epoch == 1:
            signal.raise_signal(signal.SIGTERM)
        return line

    monkeypatch.setattr(Recorder, "epoch", stop)
    words = ["train", "dml", "--student", "small-cnn,width=4", "--train-samples", "100", "-b", "32", "--peers", "2"]
    assert main([*words, "--epochs", "5", "--out", str(out)]) == 128 + signal.SIGTERM
    assert f"report: {out / report.NAME}" in capsys.readouterr().out
    found = (out / report.NAME).read_text(encoding="utf-8")
    assert "not finished: epoch 2 of 5" in found and found.count('class="legend"') == 6


def test_open(run: Path, tmp_path: Path) -> None:
    """The browser is the one that BROWSER names; without any, a line says so."""
    folder = copied(run, tmp_path)
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path / "asked"}\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "teacherless", "report", str(folder), "--open"]
    env = {**os.environ, "BROWSER": str(browser)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == f"open: {folder / report.NAME}\n", done.stderr
    assert (tmp_path / "asked").read_text() == (folder / report.NAME).resolve().as_uri()


def test_no_browser(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    assert main(["report", str(run), "--open"]) == 2
    assert capsys.readouterr().err == "teacherless: --open: no browser was found; open the page above\n"


def test_a_run_shows_what_it_gets_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same images that evaluate finds on validation, without it."""
    out = tmp_path / "r"
    words = ["--train-samples", "100", "-b", "32", "--epochs", "1", "--student", "small-cnn,width=4", "--peers", "2"]
    assert main(["train", "dml", *words, "--out", str(out)]) == 0
    seen = schemas.read(out / "mistakes.json", schemas.MISTAKES)
    assert seen and seen["student"] == schemas.summary(out)["chosen"]  # type: ignore[index]
    text = page(out)
    assert text.count("data:image/png;base64,") == len(seen["images"]) == 12
    assert "teacherless evaluate RUN" not in text
    first = seen["images"][0]
    assert f"{first['label']}, taken for {first['taken_for']} ({100 * first['confidence']:.0f} %)" in text
    capsys.readouterr()
    assert main(["evaluate", str(out), "--split", "val", "--json"]) == 0
    mistakes = json.loads(capsys.readouterr().out)["mistakes"][:12]
    assert [{**each, "png": ""} for each in seen["images"]] == [
        {**each, "confidence": pytest.approx(each["confidence"], rel=1e-5), "png": ""} for each in mistakes
    ]


def test_every_command_ends_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r"
    words = ["--train-samples", "100", "--epochs", "1", "--student", "small-cnn,width=4", "--out", str(out)]
    assert main(["train", "plain", *words]) == 0
    assert f"report: {out / report.NAME}" in capsys.readouterr().out
    assert (out / report.NAME).is_file()
