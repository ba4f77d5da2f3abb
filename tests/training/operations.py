"""A process that ends, or is refused, at its n-th file operation; what a power cut takes away besides."""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

How = Literal["kill", "power", "ENOSPC", "EIO", "never"]


class Operations:
    """A context that counts every write, fsync, rename, unlink, rmdir and mkdir of this process; something happens at
    the n-th, before it is done (of a write, when half is done).

    `kill` ends the process. `power` does too, and takes what was not flushed: the content of files that were written
    and not fsynced, and names that were made in a folder that was not fsynced afterwards. `ENOSPC` and `EIO` are what
    the n-th operation and all after it say, except removing.
    """

    def __init__(self, folder: Path, at: int, how: How) -> None:
        self.folder, self.at, self.how = folder, at, how
        self.count = 0
        self.dirty: set[int] = set()  # inodes
        self.names: list[tuple[Path, Callable[[], object]]] = []  # the folder of a new name, and how to undo it

    def happens(self, removing: bool = False) -> bool:
        """Count one; whether it is to fail."""
        self.count += 1
        if self.count < self.at or self.how == "never":
            return False
        if self.how in ("kill", "power"):
            if self.how == "power":
                self.cut()
            os._exit(9)
        return not removing

    def fail(self) -> None:
        raise OSError(getattr(errno, self.how), os.strerror(getattr(errno, self.how)))

    def cut(self) -> None:
        self.__exit__()
        for _, undo in reversed(self.names):
            undo()
        for path in self.folder.rglob("*"):
            if path.is_file() and path.stat().st_ino in self.dirty:
                os.truncate(path, 0)

    def __enter__(self) -> Operations:
        self.before = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir")}
        self.open = io.open
        for name in self.before:
            setattr(os, name, getattr(self, name))
        io.open = builtins.open = self.opened  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self.before.items():
            setattr(os, name, function)
        io.open = builtins.open = self.open  # type: ignore[assignment]

    # What is counted -------------------------------------------------------------------------------------------------

    def opened(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **more: Any) -> Any:
        if isinstance(file, int) or mode not in ("wb", "ab") or not Path(file).is_relative_to(self.folder):
            return self.open(file, mode, buffering, *args, **more)
        raw = Raw(os.fspath(file), mode)
        raw.all = self
        return raw if buffering == 0 else io.BufferedWriter(raw, 1 << 30)

    def fsync(self, handle: int) -> None:
        if self.happens():
            self.fail()
        self.before["fsync"](handle)
        self.dirty.discard(os.fstat(handle).st_ino)
        folder = Path(os.readlink(f"/proc/self/fd/{handle}"))
        self.names = [(where, undo) for where, undo in self.names if where != folder]

    def rename(self, source: Any, target: Any, **more: Any) -> None:
        if self.happens():
            self.fail()
        source, target = Path(source), Path(target)
        kept = None
        if target.is_file():
            kept = self.folder.with_name(f"kept-{os.getpid()}-{self.at}-{self.count}")
            os.link(target, kept)
        self.before["replace"](source, target, **more)

        def undo() -> None:
            if target.exists():
                self.before["replace"](target, source)
            if kept:
                self.before["replace"](kept, target)

        self.names.append((target.parent, undo))

    replace = rename

    def mkdir(self, path: Any, *args: Any, **more: Any) -> None:
        if not Path(path).is_relative_to(self.folder):  # torch's caches
            return self.before["mkdir"](path, *args, **more)
        if self.happens():
            self.fail()
        self.before["mkdir"](path, *args, **more)
        self.names.append((Path(path).parent, lambda: shutil.rmtree(path)))

    def unlink(self, *args: Any, **more: Any) -> None:
        self.happens(removing=True)
        self.before["unlink"](*args, **more)

    def rmdir(self, *args: Any, **more: Any) -> None:
        self.happens(removing=True)
        self.before["rmdir"](*args, **more)


class Raw(io.FileIO):
    """A file whose writes are counted."""

    all: Operations

    def write(self, data: Any) -> int:
        self.all.dirty.add(os.fstat(self.fileno()).st_ino)
        if self.all.count + 1 == self.all.at and self.all.how != "never":
            super().write(bytes(data)[: len(data) // 2])
        if self.all.happens():
            self.all.fail()
        return super().write(data) or 0
