"""The examples run as they are, and reach what their text says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("script", "least"),
    [("own_loop.py", 95), ("own_model.py", 85), ("text.py", 70), ("text_transformers.py", 65), ("tabular.py", 95)],
)
def test_example(script: str, least: float, tmp_path: Path) -> None:
    if "transformers" in script:
        for package in ("transformers", "accelerate"):
            pytest.importorskip(package)
    done = subprocess.run([sys.executable, str(EXAMPLES / script)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accuracies = [float(found) for found in re.findall(r": ([\d.]+) (?:± [\d.]+ )?%", done.stdout)]
    assert len(accuracies) >= 2
    assert min(accuracies) > least
    assert list(tmp_path.iterdir()) == [], "an example wrote something"
