"""Coverage-guided fuzzing of everything that reads files and words of others.

python tests/fuzz/fuzz.py [TARGET ...] [--inputs 20000] [--keep FOLDER]

Needs atheris, which is no dependency: `make fuzz` has it in an environment of its own. Each target runs in a process of
its own, begins with corpus/TARGET, and mutates what reaches new code. A traceback, ten seconds for one input, or more
than 1.5 GB of memory ends it; the input is then in FOLDER. Prints inputs, seconds and findings of each target.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
PURE = ["teacherless", "tomllib", "zipfile", "gzip", "numpy.lib._format_impl", "numpy.lib._npyio_impl"]  # watched


def fuzz(name: str, options: list[str]) -> None:
    """One target in this process, which ends with it."""
    import atheris

    sys.path.insert(0, str(HERE))
    with atheris.instrument_imports(include=PURE):
        from targets import TARGETS
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


def tokens(folder: Path) -> Path:
    """Words that files of ours are made of, for mutations."""
    from teacherless.files import schemas
    from teacherless.methods import METHODS
    from teacherless.runs.config import Run

    kinds = [kind for kind in vars(schemas).values() if isinstance(kind, type) and kind.__module__ == schemas.__name__]
    names = {name for kind in kinds for name in kind.__annotations__} | schemas.MEASURED | set(Run.model_fields)
    file = folder / "words.dict"
    values = [
        "null",
        "true",
        "NaN",
        "Infinity",
        "-1",
        "1e999",
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "=",
        "\\\\u0000",
        "small-cnn",
    ]
    file.write_text("".join(f'"{word}"\n' for word in sorted({*names, *METHODS, *values})))
    return file


def main() -> int:
    from targets import TARGETS

    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*", default=[*TARGETS])
    parser.add_argument("--inputs", type=int, default=20_000, help="for each target")
    parser.add_argument("--keep", type=Path, help="where the corpus grows, and what was found")
    given = parser.parse_args()
    keep = given.keep or Path(tempfile.mkdtemp(prefix="teacherless-found-"))
    keep.mkdir(parents=True, exist_ok=True)
    words, bad = tokens(keep), []
    for name in given.targets:
        grown = keep / name
        grown.mkdir(exist_ok=True)
        began = time.monotonic()
        command = [sys.executable, __file__, "--one", name, str(grown), str(HERE / "corpus" / name), f"-dict={words}",
                   f"-runs={given.inputs}", "-timeout=10", "-rss_limit_mb=1500", "-max_len=8192", "-verbosity=1",
                   "-print_final_stats=1", f"-artifact_prefix={grown.parent}/{name}-"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        ran = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        said = "nothing found" if done.returncode == 0 else "FOUND SOMETHING"
        print(f"{name}: {ran[1] if ran else '?'} inputs, {time.monotonic() - began:.0f} s, {said}", flush=True)
        if done.returncode:
            bad.append(name)
            print(done.stderr[-4000:], flush=True)
    print(f"inputs that were found are in {keep}" if bad else "nothing found")
    return len(bad)


if __name__ == "__main__":
    if "--one" in sys.argv:
        fuzz(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
