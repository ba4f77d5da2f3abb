"""The examples run as they are, and reach what their text says."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path

import pytest
from forked import Forked

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("script", "least"),
    [
        ("own_loop.py", 95),
        ("own_model.py", 85),
        pytest.param("text.py", 70, marks=pytest.mark.slow),
        pytest.param("text_transformers.py", 65, marks=pytest.mark.slow),
        pytest.param("tabular.py", 95, marks=pytest.mark.slow),
    ],
)
def test_example(script: str, least: float, tmp_path: Path) -> None:
    if "transformers" in script:
        for package in ("transformers", "accelerate"):
            pytest.importorskip(package)

    def run() -> None:
        os.chdir(tmp_path)
        sys.path.insert(0, str(EXAMPLES))
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")

    done = Forked(before=run)
    out, err = done.communicate()
    assert done.returncode == 0, err
    accuracies = [float(found) for found in re.findall(r": ([\d.]+) (?:± [\d.]+ )?%", out)]
    assert len(accuracies) >= 2
    assert min(accuracies) > least
    assert list(tmp_path.iterdir()) == [], "an example wrote something"
