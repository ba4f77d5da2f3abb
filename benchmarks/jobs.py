"""How much faster a comparison is with two runs side by side.

python benchmarks/jobs.py [--rounds 2] [--jobs 2]

The whole command of `make demo`, started anew every time: reading, training, table and pictures. Every number of jobs
must leave the same students, byte for byte. Needs as many idle cores as jobs. Reading, starting the workers, the table
and the pictures take some seconds whatever the number of runs, so shorter comparisons gain less.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import interleave, interval, machine, ratio, shown, table, timed, write

DEMO = next(line for line in Path("Makefile").read_text(encoding="utf-8").splitlines() if line.startswith("DEMO := "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    settings = DEMO.removeprefix("DEMO := ").split()
    left: set[str] = set()  # by the comparisons: one digest of all students

    def compare(jobs: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "teacherless", *settings, "--jobs", str(jobs), "--out", folder]
            subprocess.run(command, check=True, capture_output=True)
            digest = hashlib.sha256()
            for path in sorted(Path(folder).glob("cells/*/students/*/*")):
                digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
            left.add(digest.hexdigest())

    where = machine("cpu")
    ways = {f"--jobs {n}": timed(lambda n=n: compare(n)) for n in (1, args.jobs)}
    times = interleave(ways, args.rounds)
    if len(left) != 1:
        raise SystemExit(f"the students differ: {len(left)} kinds over {2 * args.rounds} comparisons")
    one, several = times.values()
    rows = [[name, f"{interval(t)[0] / 1000:.1f}", shown(ratio(one, t))] for name, t in times.items()]
    text = table(["", "seconds", "times as fast"], rows)
    write(
        "jobs", where, {" ".join(settings): text + "\n\nEvery comparison left the same students, byte for byte."}, times
    )
    if ratio(one, several)[0] < 1.7:
        raise SystemExit("less than the 1.7 that were promised")


if __name__ == "__main__":
    main()
