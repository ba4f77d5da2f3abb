"""`teacherless list`: the methods, models, data sets and recipes there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cyclopts import App

from teacherless.cli.given import examples, given, merged
from teacherless.cli.kinds import AllFlags, Json, Name, SomeFlags
from teacherless.errors import InputError, printable, unknown
from teacherless.runs.flags import DataFlags, Flags
from teacherless.study import show

lists = App(
    name="list",
    help="Show what there is: methods, models, data or recipes; with NAME, all about one.",
    help_epilogue=examples("list methods", "list methods dml", "list recipes"),
)


@lists.command(name="methods", help_epilogue=examples("list methods dml", "list methods dml --student resnet8"))
def list_methods(name: Name = None, /, *, flags: AllFlags = Flags(), json: Json = False) -> None:
    """The methods; with NAME its card. With NAME and any flag of train: who learns from which term, how strongly."""
    typed = given(flags)
    if typed and name is None:
        raise InputError(f"{typed[0]}: is of `teacherless list methods NAME`")
    if typed:
        from teacherless.runs.explain import explain

        return show.explanation(explain(merged(name, flags)), json)
    from teacherless.cli.cards import card
    from teacherless.methods import METHODS

    cards = {key: card(key) for key in METHODS}
    if name is None:
        cards = {key: card.partition(": ")[2] for key, card in cards.items()}
    _show_cards("method", cards, name, json)


@lists.command(name="models", help_epilogue=examples("list models resnet32", "list models timm/resnet18"))
def list_models(name: Name = None, /, *, json: Json = False) -> None:
    """The networks; with NAME all about one, also of timm/NAME, torchvision/NAME and package.module:function."""
    from teacherless.models import MODELS, describe
    from teacherless.models.foreign.by_name import is_foreign

    names = [name] if name and is_foreign(name) else list(MODELS)
    _show_cards("model", {key: describe(key) for key in names}, name, json)


@lists.command(name="data", help_epilogue=examples("list data photos --aug default+cutmix --show sheet.png"))
def list_data(
    name: str | None = None, /, *, flags: SomeFlags = DataFlags(), show: Path | None = None, json: Json = False
) -> None:
    """The data sets; with NAME all about one, of a folder its classes, counts, sizes, split and unreadable files.

    Parameters
    ----------
    name
        one of them, or a folder of images.
    show
        write a picture of training images: each as it is, two views, its class.
    """
    from teacherless import data
    from teacherless.runs.build import load_source
    from teacherless.study import show as screen

    run, typed = merged("plain", flags), [*given(flags), *(["--show"] if show else [])]
    if name is None and typed:
        raise InputError(f"{typed[0]}: is of `teacherless list data NAME`")
    if name is not None and (show is not None or name not in data.SOURCES):
        source = load_source(run.model_copy(update={"data": name}), quiet=True)
        if show is not None:
            return data.contact_sheet(source, show)
        return screen.source(source, data.survey(name, run.data_dir), json)
    cards = {key: (value.__doc__ or "").strip().removeprefix(f"{key}: ") for key, value in data.SOURCES.items()}
    _show_cards("data", cards, name, json)


@lists.command(name="recipes", help_epilogue=examples("list recipes dml/cifar100-resnet32x2"))
def list_recipes(name: Name = None, /, *, json: Json = False) -> None:
    """Rows of the papers' tables, with the published number; with NAME all about one."""
    from teacherless.runs import recipes

    rows = [recipes.load(each) for each in ([name] if name else recipes.names())]
    if json:
        show.as_json([row._asdict() for row in rows])
    elif name:
        print("\n".join(map(printable, recipes.card(rows[0]).splitlines())))
    else:
        show.recipes(rows)


def _show_cards(kind: str, cards: Mapping[str, str], name: str | None, json: bool) -> None:
    """The first line of each, or the whole of one. Raises: InputError for a name that is none of them."""
    if name is not None and name not in cards:
        raise unknown(kind, name, cards)
    lines = {key: card.splitlines()[0] for key, card in cards.items()}
    if json:
        show.as_json({name: cards[name]} if name else lines)
    elif name is None:
        show.table([kind, "what"], lines.items(), left=2, text="what")
    elif kind == "method":
        show.card(cards[name])
    else:
        print(f"{name}: {cards[name]}")
