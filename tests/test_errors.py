"""What is said of an extra that cannot be imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from teacherless.errors import InputError, extra, first_line


def test_an_extra_whose_own_import_is_missing_names_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half.py").write_text("import nowhere_to_be_found")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"^--x: nowhere_to_be_found is not installed; pip install '.*\[aug\]'$"):
        extra("half", "--x", name="aug")


def test_a_broken_extra_is_installed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torn.py").write_text("raise OSError('libtorn.so: no such file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        InputError,
        match=r"torn is broken \(OSError: libtorn.so: no such file\); install it anew: pip uninstall -y torn; pip",
    ):
        extra("torn", "--x")
    assert extra("sys", "--x") is sys


def test_first_line() -> None:
    assert first_line(ValueError("one\ntwo")) == "ValueError: one"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
