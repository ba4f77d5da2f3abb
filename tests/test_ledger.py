"""The ledger of results/: designs that can be run, numbers that nobody wrote by hand."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "results"))
import ledger  # noqa: E402

from teacherless.cli import main  # noqa: E402
from teacherless.methods import METHODS  # noqa: E402


@pytest.mark.parametrize("study", ledger.studies())
def test_a_design_says_all_before_it_is_run(study: str) -> None:
    design = ledger.studies()[study]
    assert all(len(design[key]) > 40 for key in ("question", "bet", "design"))
    for command in design["comparisons"].values():
        arguments = shlex.split(command)
        assert arguments[0] == "compare" and "--out" not in arguments
        methods = arguments[arguments.index("--methods") + 1].split(",")
        assert set(methods) <= set(METHODS)


def test_what_is_written_is_what_the_numbers_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No number of the README, the page and the cards is edited by hand."""
    (tmp_path / "docs").mkdir()
    written = ["README.md", "docs/learnt.md", "results/ledger.json"]
    shutil.copytree(ROOT / "results", tmp_path / "results")
    for file in written:
        shutil.copy(ROOT / file, tmp_path / file)
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    monkeypatch.setattr(ledger, "HERE", tmp_path / "results")
    ledger.write()
    for file in written:
        assert (tmp_path / file).read_text("utf-8") == (ROOT / file).read_text("utf-8"), f"{file}: run `make readme`"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger with one study of two tiny comparisons, which has been run."""
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    monkeypatch.setattr(ledger, "HERE", tmp_path / "results")
    monkeypatch.setattr(ledger, "teacherless", lambda arguments: main(arguments) and pytest.fail("the command failed"))
    study = tmp_path / "results" / "tiny"
    study.mkdir(parents=True)
    tiny = "compare --data digits --student small-cnn,width=2 --steps 2 --seeds 3 --methods label-smoothing --jobs 1"
    (study / "study.toml").write_text(
        f'question = "q"\nbet = "b"\ndesign = "d"\n[comparisons]\na = "{tiny}"\nb = "{tiny} --seed 7"\n',
        encoding="utf-8",
    )
    ledger.run("tiny")
    return study


def test_a_study_is_run_kept_and_checked(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {path.name for path in (small / "b").iterdir()} == {*ledger.KEPT, "cells.jsonl"}
    found = list(ledger.rows())
    assert [(each["comparison"], each["row"], each["seeds"]) for each in found] == [
        ("a", "label-smoothing", 3),
        ("b", "label-smoothing", 3),
    ]
    with pytest.raises(SystemExit) as done:
        ledger.check("tiny")
    assert not done.value.code and "the same bits" in capsys.readouterr().out

    cells = small / "a" / "cells.jsonl"
    lines: list[dict[str, Any]] = [json.loads(line) for line in cells.read_text("utf-8").splitlines()]
    lines[0]["files"] = dict.fromkeys(lines[0]["files"], "0" * 64)
    cells.write_text(json.dumps(lines[0]) + "\n", encoding="utf-8")
    (small / "b" / "cells.jsonl").unlink()
    with pytest.raises(SystemExit) as done:
        ledger.check("tiny")
    assert done.value.code and "OTHER BITS" in capsys.readouterr().out


def test_a_design_that_was_changed_after_its_results_is_told(small: Path) -> None:
    assert "changed after" not in ledger.pages(list(ledger.rows()))
    file = small / "study.toml"
    file.write_text(file.read_text("utf-8").replace('"b"', '"another bet"', 1), encoding="utf-8")
    assert "The design was changed after these results" in ledger.pages(list(ledger.rows()))
