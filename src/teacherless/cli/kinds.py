"""The kinds of arguments and flags that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from teacherless.cli.wording import count
from teacherless.runs.flags import DataFlags, Flags

AllFlags = Annotated[Flags, Parameter(name="*")]
SomeFlags = Annotated[DataFlags, Parameter(name="*")]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="print JSON instead of a table")]
Switch = Annotated[bool, Parameter(negative=())]
Count = Annotated[int, Parameter(converter=count)]
Name = Annotated[str | None, Parameter(help="one of them.")]
Method = Annotated[str | None, Parameter(help="plain, dml, ...: see `teacherless list methods`; a recipe may name it.")]
Recipe = Annotated[
    Path | None,
    Parameter(help="one of `teacherless list recipes`, or a TOML file of settings; METHOD and flags beat it."),
]
DataDir = Annotated[Path | None, Parameter(help="where the data set's files are.")]
TrustImports = Annotated[
    bool,
    Parameter(help="import the code that a config.json names (a student package.module:function).", negative=()),
]
