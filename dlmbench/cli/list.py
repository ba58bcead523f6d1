"""`dlmbench list`: what there is to choose from."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from dlmbench.cli import flags
from dlmbench.cli.console import print_json, stdout
from dlmbench.cli.sweep import recipe_files
from dlmbench.errors import RequestError
from dlmbench.models.presets import PRESETS
from dlmbench.registry import DECODERS, GROUPS, load_plugin
from dlmbench.request import read_recipe
from dlmbench.request.options import threshold_field
from dlmbench.tasks import catalogue
from dlmbench.tasks.protocols import PROTOCOLS

if TYPE_CHECKING:
    from dlmbench.decoders.base import Decoder

Rows: TypeAlias = "builtins.list[dict[str, object]]"  # of a table; `list` is the verb here
KINDS = ("methods", "models", "tasks", "protocols", "recipes")
_NAMES = ("group", "method", "model", "task", "protocol", "read", "file", "family", "where", "verb")
_ROOM = 36  # characters that the last column's text needs beside the others
_ONLY_JSON = ("recipe", "source", "evaluation")  # the file, the preset's `show` and the protocol's name say as much


def list(  # noqa: A001  (the verb's name)
    kind: Annotated[str, typer.Argument(help="methods, models, tasks, protocols or recipes.", show_default=False)],
    plugin: flags.Plugin = None,
    json: flags.Json = False,
) -> None:
    """List methods, models, tasks, protocols or recipes."""
    if kind not in KINDS:
        raise RequestError(f"Cannot list {kind!r}; there are {', '.join(KINDS)}.")
    if plugin:
        load_plugin(plugin)
    rows = {
        "methods": _methods,
        "models": _models,
        "tasks": _tasks,
        "protocols": _protocols,
        "recipes": _recipes,
    }[kind]()
    if json:
        print_json({kind: rows})
        return
    _print(rows)


def _print(rows: Rows) -> None:
    """A table where the terminal leaves room for the text in the last column, else an entry of two lines or more."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    columns = [name for name in (rows[0] if rows else ()) if name not in _ONLY_JSON]
    cells = [["" if row[name] is None else str(row[name]) for name in columns] for row in rows]
    width = sum(max(map(len, [name, *column])) + 2 for name, column in zip(columns[:-1], zip(*cells)))
    if stdout().width - width >= _ROOM:
        table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
        for name in columns:  # names stay in one piece, the text in the last column takes the lines it needs
            table.add_column(name, overflow="fold", no_wrap=name in _NAMES)
        for row in cells:
            table.add_row(*row)
        return stdout().print(table)
    for name, *between, text in cells:
        said = "; ".join(f"{column}: {cell}" for column, cell in zip(columns[1:-1], between) if cell)
        stdout().print(Text(name, style="bold"))
        stdout().print(Padding(Text.assemble(text, ("\n" if text and said else ""), (said, "dim")), (0, 0, 0, 4)))


def _methods() -> Rows:
    rows: Rows = []
    places = {group: place for place, group in enumerate(GROUPS)}
    found = [(name, DECODERS.get(name)) for name in DECODERS.names()]
    for name, decoder in sorted(found, key=lambda one: places.get(one[1].group, len(places))):
        rows.append(
            {
                "method": name,
                "group": decoder.group,
                "threshold": threshold_field(decoder.Config),
                "attention": ", ".join(decoder.attention),
                "networks": ", ".join(decoder.roles),
                "evidence": decoder.evidence.kind,
                "what it does": first_sentence(decoder),
            }
        )
    return rows


def first_sentence(decoder: type[Decoder]) -> str:
    """First sentence of the decoder's own docstring, else of its module's, without the leading name."""
    import re
    import sys

    own = vars(decoder).get("__doc__")
    text = own or getattr(sys.modules.get(decoder.__module__), "__doc__", None) or ""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    paragraph = paragraph.removeprefix(f"`{decoder.name}`:").strip()
    return re.sub(r"\s*\([^()]*\bcards?\b[^()]*\)", "", paragraph).split(". ")[0].rstrip(".")


def _models() -> Rows:
    return [
        {
            "model": preset.name,
            "family": preset.family,
            "block": preset.block_length or "ask",
            "status": preset.status,
            "where": "absent" if preset.absent else "shipped" if preset.shipped else "hub",
            "source": preset.source,
            "what it is": preset.description,
        }
        for preset in PRESETS.values()
    ]


def _tasks() -> Rows:
    return [
        {"task": row.name, "items": row.items, "needs": row.needs, "what it asks": row.description}
        for row in catalogue()
    ]


def _protocols() -> Rows:
    return [
        {
            "protocol": protocol.name,
            "task": task,
            "shots": asked.shots,
            "markup": "chat" if protocol.chat else "raw",
            "read": asked.reading,
            "prompt": asked.prompt + (f" ({asked.other})" if asked.other else ""),
            "evaluation": protocol.source,
        }
        for protocol in PROTOCOLS.values()
        for task, asked in protocol.tasks.items()
    ]


def _recipes() -> Rows:
    rows: Rows = []
    for path in recipe_files():
        record = read_recipe(path)
        verb = "sweep" if "methods" in record else "train"
        rows.append(
            {
                "recipe": path.stem,
                "file": f"{path.parent.name}/{path.name}",
                "verb": verb,
                "what it does": record.get("description", ""),
            }
        )
    return rows
