"""The options that ``run`` and ``sweep`` share, with their help. In a sweep every value may be a list or a range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from dlmbench.runs.recording import TRACED as TRACED

_MODELS, _OUTPUT = "Models", "Output"

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="METHOD.OPTION=VALUE", help="An option of a method; see dlmbench show METHOD. Repeatable."
    ),
]
Against = Annotated[str, typer.Option(help="Baselines that come along, or none.")]
Like = Annotated[
    str | None, typer.Option(help="Preset whose settings a folder or hub name takes, or none.", rich_help_panel=_MODELS)
]
Draft = Annotated[str | None, typer.Option(help="Draft model.", rich_help_panel=_MODELS)]
Guide = Annotated[str | None, typer.Option(help="Guide model.", rich_help_panel=_MODELS)]
Reference = Annotated[str | None, typer.Option(help="Reference model.", rich_help_panel=_MODELS)]
Head = Annotated[str | None, typer.Option(help="Folder of a trained head.", rich_help_panel=_MODELS)]
ChatTemplate = Annotated[
    bool | None,
    typer.Option(
        "--chat-template/--no-chat-template", show_default="by model", help="Put prompts into the model's chat markup."
    ),
]
DataDir = Annotated[str | None, typer.Option(help="Folder with the task's JSONL files, instead of the hub.")]
Out = Annotated[str | None, typer.Option(help="Where run folders are kept.", rich_help_panel=_OUTPUT)]
Traces = Annotated[
    int,
    typer.Option(min=0, help="First N items whose steps are recorded, for report and diff.", rich_help_panel=_OUTPUT),
]
Plugin = Annotated[str | None, typer.Option(help="Python file that registers a decoder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=_OUTPUT)]


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a spec that the user gave, from a verb's ``locals()`` before it makes any other name."""
    from dlmbench.request.values import FIELDS

    wanted = (*FIELDS, "set", "tune_on")
    named = {name.rstrip("_"): value for name, value in arguments.items()}
    return {name: named[name] for name in wanted if named.get(name) is not None}
