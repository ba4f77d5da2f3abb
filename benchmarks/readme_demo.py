"""Write what the demo prints into README.md, with the machine it was printed on: `make readme-demo`.

python benchmarks/readme_demo.py COMMAND...
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import machine

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- written by `make readme-demo` -->", "<!-- end -->"


def block(printed: str, minutes: float, where: dict[str, Any]) -> str:
    """What stands between the marks."""
    lines = "\n".join(line.rstrip() for line in printed.splitlines()).strip("\n")
    busy = f", busy otherwise too: load {where['load']:.0f}" if where["load"] > 1.5 * where["cores"] else ""
    machine = f"{where['cores']} cores ({where['cpu']}{busy})"
    return f"What `make demo` prints, here after {minutes:.1f} minutes on {machine}:\n\n```text\n{lines}\n```\n"


def replaced(text: str, new: str) -> str:
    """The text with what stands between the marks replaced."""
    found, count = re.subn(
        f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{new}{END}", text, flags=re.S
    )
    if count != 1:
        raise SystemExit(f"README.md: found {count} blocks between {BEGIN} and {END}; must be one")
    return found


def main() -> None:
    began = time.monotonic()
    printed = subprocess.run(sys.argv[1:], check=True, stdout=subprocess.PIPE, text=True).stdout
    new = block(printed, (time.monotonic() - began) / 60, machine("cpu"))
    README.write_text(replaced(README.read_text(), new))


if __name__ == "__main__":
    main()
