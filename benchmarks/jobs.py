"""How much faster a comparison is with two runs side by side.

python benchmarks/jobs.py [--rounds 2] [--jobs 2]

The whole command of `make demo`, started anew every time: reading, training, table and pictures. Every number of jobs
must leave the same students, byte for byte. Needs as many idle cores as jobs. Reading, starting the workers, the table
and the pictures take some seconds whatever the number of runs, so shorter comparisons gain less. Cores share memory and
caches, and on rented machines more than that, so beside it stands what they give at most: as many trainings that know
nothing of each other, all at once, against one alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import interleave, interval, machine, ratio, shown, table, timed, write

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
TRAINING = ["train", "plain", "--data", "digits", "--batch-size", "32", "--student", "small-cnn", "--epochs", "20"]
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

    def alone(trainings: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "teacherless", *TRAINING]
            every = [
                subprocess.Popen([*command, "--out", f"{folder}/{i}"], stdout=subprocess.DEVNULL, env=ONE_THREAD)
                for i in range(trainings)
            ]
            if any([process.wait() for process in every]):
                raise SystemExit("a training failed")

    where = machine("cpu")
    ceiling = interleave({str(n): timed(lambda n=n: alone(n)) for n in (1, args.jobs)}, 2 * args.rounds)
    most, low, high = (args.jobs * each for each in ratio(*ceiling.values()))
    ways = {f"--jobs {n}": timed(lambda n=n: compare(n)) for n in (1, args.jobs)}
    times = interleave(ways, args.rounds)
    if len(left) != 1:
        raise SystemExit(f"the students differ: {len(left)} kinds over {2 * args.rounds} comparisons")
    one, several = times.values()
    rows = [[name, f"{interval(t)[0] / 1000:.1f}", shown(ratio(one, t))] for name, t in times.items()]
    text = table(["", "seconds", "times as fast"], rows)
    text += f"\n\n{args.jobs} trainings at once, against one alone: {shown((most, low, high))} times as much."
    text += "\n\nEvery comparison left the same students, byte for byte."
    write("jobs", where, {" ".join(settings): text}, times | {f"{n} trainings": t for n, t in ceiling.items()})
    if ratio(one, several)[0] < 1.7:
        raise SystemExit("less than the 1.7 that were promised")


if __name__ == "__main__":
    main()
