"""What a user can get wrong, said in one line.

The library raises `InputError`; the command line prints its text and exits with its code. Anything else that escapes is
a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import importlib
import re
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Something the user gave cannot be used: the text names it, says what was found and what is legal, in one line."""

    exit_code = 2

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


ADVICE = "try a lower --lr or --clip-grad 1"  # when training diverged


class Diverged(RuntimeError):
    """Training produced a loss, weights or predictions that are not finite."""

    exit_code = 4
    folder: Path | None = None  # of the run


class Lost(RuntimeError):
    """Another rank of the run is gone, or did not answer in time."""

    exit_code = 5


class Stopped(BaseException):
    """A signal ended the run; the command line exits with 128 + its number, as a shell would report it.

    It can come between any two lines, as a KeyboardInterrupt does, so it is no Exception either: who catches whatever
    a damaged image or somebody else's network raises must not take it for that.
    """

    folder: Path | None = None  # of the run, where it is saved

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal
        self.exit_code = 128 + signal


def unknown(kind: str, name: str, legal: Iterable[str], *, listed: str | None = None) -> InputError:
    """The error for a name nobody knows, with the nearest legal one, and all of them, or where they are `listed`."""
    legal = sorted(legal)
    near = difflib.get_close_matches(name, legal, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {name!r}{hint} (known: {listed or ', '.join(legal)})")


def names_code(where: object, name: str) -> InputError:
    """The error for a file that names code to run, where the command line does not trust it."""
    hint = "if you trust it, say --trust-imports (in Python: trust_imports=True)"
    return InputError(f"{where}: names code to run, {name!r}; {hint}")


def printable(text: str) -> str:
    """A name as it may be printed: without newlines, escapes and what else would change a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(text: object) -> str:
    """A text as it may be printed, whatever a file put into it."""
    return printable(" ".join(str(text).split()))


def short(value: Any) -> str:
    """A value as an error shows it, however long or deep it is."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 3


@contextmanager
def python_names() -> Iterator[None]:
    """Inside, errors name Python's arguments, `clip_grad`, where the command line's say `--clip-grad`."""
    try:
        yield
    except (InputError, Diverged, Lost, Stopped) as error:
        error.args = (re.sub(r"--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), str(error)), *error.args[1:])
        raise


def first_line(error: BaseException) -> str:
    """What an error says, in one line: `RuntimeError: operator torchvision::nms does not exist`."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}".removesuffix(": ")


def extra(package: str, wanted_by: str, *, name: str | None = None) -> Any:
    """Import an optional package.

    Args:
        package: the module.
        wanted_by: what the user asked for, as it begins the error.
        name: of the extra, where it is another than the package's.

    Raises: InputError that says what is wrong and the line that mends it: the package is missing, or broken; of
        torchvision (which timm imports too) that is a build that does not match torch's.
    """
    mend = f"pip install 'teacherless[{name or package}]'"
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise InputError(f"{wanted_by}: {error.name or package} is not installed; {mend}") from error
    except Exception as error:  # a broken install raises anything
        why = first_line(error)
        if package in ("timm", "torchvision"):
            broken = f"{_installed('torchvision')} and {_installed('torch')} are builds that do not match ({why})"
            mend = "install both anew: pip uninstall -y torch torchvision && pip install torch torchvision"
            index = "builds like +cpu: from the index that pytorch.org/get-started names"
            raise InputError(f"{wanted_by}: {broken}; {mend} ({index})") from error
        anew = f"install it anew: pip uninstall -y {package}; {mend}"
        raise InputError(f"{wanted_by}: {package} is broken ({why}); {anew}") from error


def _installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
