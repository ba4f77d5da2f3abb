"""The pages that are written from code: cards, commands, the Python names. MkDocs calls `on_...`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from html import escape
from pathlib import Path
from textwrap import dedent
from typing import Any

from cyclopts import App
from cyclopts.docs.markdown import generate_markdown_docs
from griffe import Extension, Object
from mkdocs.structure.files import File, Files
from ziamath import Latex

import teacherless
from teacherless.cli import app
from teacherless.cli.cards import card
from teacherless.methods import METHODS

HERE = Path(__file__).parent
EQUATIONS: dict[str, list[str]] = tomllib.loads((HERE / "_equations.toml").read_text(encoding="utf-8"))


def on_config(config: Any) -> None:
    """A ```math block becomes a drawing."""
    fence = {"name": "math", "class": "math", "format": typeset}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]


def typeset(source: str, *_: Any, **__: Any) -> str:
    """One equation a line. Not MathML: without a font for mathematics, which few have, browsers set it badly."""
    drawn = (
        (escape(line, quote=True), Latex(line, size=20, color="currentColor").svg()) for line in source.splitlines()
    )
    return "".join(f'<div class="equation" role="img" aria-label="{line}">{svg}</div>' for line, svg in drawn)


def on_files(files: Files, config: Any) -> Files:
    """Add what is written here; a folder in the navigation becomes its pages, and who is in none comes last."""
    for path, text in [*cards(), *commands(), *names()]:
        files.append(File.generated(config, path, content=text))
    pages = [page.src_uri for page in files.documentation_pages()]
    nav = [(title, place) for entry in config.nav for title, place in entry.items()]
    inside = {place: [page for page in pages if page.startswith(place)] for _, place in nav if place.endswith("/")}
    named = {*(place for _, place in nav), *(page for found in inside.values() for page in found)}
    rest = [page for page in pages if page not in named]
    config.nav = [{title: inside.get(place, place)} for title, place in nav if inside.get(place, place)] + rest
    return files


def on_page_content(html: str, **_: Any) -> str:
    """A drawing of ours becomes part of the page: so it has the page's colours, light or dark."""
    return re.sub(
        r'<img [^>]*src="(\w+\.svg)"[^>]*>', lambda found: (HERE / found[1]).read_text(encoding="utf-8"), html
    )


def cards() -> Iterator[tuple[str, str]]:
    """A page for each method: the docstring of its file, with the equations typeset."""
    for name, method in METHODS.items():
        title, *parts = re.split(r"\n(?=\S)", card(name))
        page = [f"# {name}", markdown(title)]
        for heading, _, text in (part.partition(":") for part in parts):
            text = dedent(text).strip("\n ")
            page.append(f"## {heading}")
            if heading == "Formula":
                page += [
                    fenced("math", "\n".join(EQUATIONS[name])),
                    "In plain text, as `teacherless list methods` prints it:",
                ]
            page.append(fenced("text", text) if heading == "Formula" else markdown(text))
        page += ["## In Python", f"::: {method.__module__}.{method.__name__}\n    options: {{heading_level: 3}}"]
        yield f"methods/{name}.md", "\n\n".join(page)


class Lines(Extension):
    """Griffe reads a section only where its text begins on a new line."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """`Raises: InputError ...` becomes a paragraph."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^(Raises|Returns): ", r"**\1:** ", obj.docstring.value, flags=re.M)


def fenced(language: str, text: str) -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"


def markdown(text: str) -> str:
    """Plain text as Markdown: no letter of it is a sign, what is indented is a block, papers are links."""
    text = re.sub(r"^ .*|`[^`]*`|[_*\[<]", plain, text, flags=re.M)
    text = re.sub(r"arXiv:([\d.]+\d)", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    text = re.sub(r"docs/(log|learnt)\.md", r"[docs/\1.md](../\1.md)", text)
    return re.sub(r"((?:^ .*\n?)+)", r"\n\1\n", text, flags=re.M)


def plain(found: re.Match[str]) -> str:
    """A letter that Markdown would read as a sign; code is left as it is."""
    return found[0] if len(found[0]) > 1 else f"&#{ord(found[0])};"


def commands() -> Iterator[tuple[str, str]]:
    """A page for each command: what --help says, with its examples."""
    for name in (name for name in app if not name.startswith("-")):
        yield f"commands/{name}.md", "\n\n".join(help_of(app[name], name))


def help_of(command: App, name: str, level: int = 1) -> Iterator[str]:
    """A command and those inside it."""
    yield "#" * level + f" {name}"
    inside = [inner for inner in command if not inner.startswith("-")]
    if inside:
        yield command.help
    else:
        said = generate_markdown_docs(command, usage_name=f"teacherless {name}", no_root_title=True)
        yield re.sub(r"`[^`]*`|[<\[]", plain, said)
    yield fenced("sh", dedent(command.help_epilogue.partition("Examples:\n")[2]))
    for inner in inside:
        yield from help_of(command[inner], f"{name} {inner}", level + 1)


def names() -> Iterator[tuple[str, str]]:
    """A page for each part of the package that has public names."""
    homes: dict[str, list[str]] = {"losses": ["losses"]}
    for name, home in sorted(teacherless._NAMES.items()):
        homes.setdefault(home.partition(".")[0], []).append(f"{home}.{name}")
    for part, found in sorted(homes.items()):
        yield f"python/{part}.md", "\n\n".join([f"# {part}", *(f"::: teacherless.{name}" for name in found)])
