"""--log tensorboard: the numbers of metrics.jsonl, by the same names, as TensorBoard reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from teacherless.errors import InputError, extra


class Board:
    """TensorBoard's event files in the run folder `out`; the step of a number is its epoch.

    A run that goes on writes what was before anew, in one file: so no epoch is there twice, whatever stopped the run.
    Raises: InputError without a run folder, or without TensorBoard.
    """

    def __init__(self, out: Path | None) -> None:
        if out is None:
            raise InputError("--log: needs --out, the run folder that it writes to")
        extra("tensorboard", "--log tensorboard")
        self.folder = out / "tensorboard"

    def open(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write these epochs, and nothing but these."""
        from torch.utils.tensorboard import SummaryWriter

        old = list(self.folder.glob("events.out.tfevents.*"))
        # A viewer that has the old file open forgets what it read from step 0 on.
        self.writer = SummaryWriter(self.folder, purge_step=0)
        for line in history:
            self.epoch(line)
        self.writer.flush()
        for file in old:
            file.unlink()

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Write one more; `line` as in metrics.jsonl."""
        for name, value in line.items():
            if isinstance(value, int | float):
                self.writer.add_scalar(name, value, line["epoch"])
        self.writer.flush()

    def close(self) -> None:
        """The run ends."""
        self.writer.close()
