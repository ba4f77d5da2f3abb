"""What cyclopts refuses, in the words of our own errors: the thing, what was found, what is legal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from cyclopts import CycloptsError, Token, exceptions

from teacherless.errors import InputError, short, unknown

KINDS: dict[Any, str] = {int: "a whole number", float: "a number", Path: "a path", bool: "a switch, without a value"}


def reworded(error: CycloptsError) -> str:
    """The one line of an error, as `InputError` would say it."""
    if isinstance(error.__cause__, InputError):  # of a converter of ours
        return str(error.__cause__)
    words, app = error.unused_tokens or [""], error.app
    command = " ".join(error.command_chain or ("teacherless",))
    if isinstance(error, exceptions.UnknownCommandError) and app:
        return str(unknown("command", words[0], [name for name in app if not name.startswith("-")]))
    if isinstance(error, exceptions.UnknownOptionError):
        flags = [name for argument in error.argument_collection for name in argument.names]
        typed = error.token.keyword or error.token.value
        return str(unknown("flag", typed, flags, listed=f"teacherless {command} --help"))
    if isinstance(error, exceptions.UnusedCliTokensError) and app:
        takes = [each.name for each in app.assemble_argument_collection() if each.field_info.is_positional]
        return f"{command}: found {short(words[0])}, a word too many; takes {' '.join([*takes, 'flags'])}"
    if isinstance(error, exceptions.RepeatArgumentError):
        return f"{error.token.keyword}: found twice; must be given once"
    if isinstance(error, exceptions.MissingArgumentError) and error.argument:
        name = error.keyword or error.argument.name
        what = f"found only {short(error.tokens_so_far[0])}" if error.tokens_so_far else "is missing"
        if name in words and not error.tokens_so_far:
            what = "found no value"
        return f"{name}: {what}; must be {error.argument.parameter.metavar or legal(error.argument.hint)}"
    if isinstance(error, exceptions.CoercionError) and error.token and error.argument:
        name = error.token.keyword or error.argument.name
        return f"{name}: found {short(error.token.value)}; must be {legal(error.target_type)}"
    return str(error)


def legal(kind: Any) -> str:
    """What may be given for a type: `'val' or 'test'`, `a whole number`."""
    inner = [each for each in get_args(kind) if each not in (NoneType, ...)]
    if get_origin(kind) is Literal:
        *others, last = map(repr, inner)
        return f"{', '.join(others)} or {last}" if others else last
    if get_origin(kind) is tuple:
        return " and ".join(map(legal, inner))
    return legal(inner[0]) if inner else KINDS.get(kind, "a text")


def count(kind: Any, tokens: Sequence[Token]) -> int:
    """A flag's value that counts something. Raises: InputError unless it is a whole number, at least 1."""
    (token,) = tokens
    if not token.value.isdecimal() or not token.value.strip("0"):
        raise InputError(f"{token.keyword}: found {short(token.value)}; must be a whole number, at least 1")
    return int(token.value)
