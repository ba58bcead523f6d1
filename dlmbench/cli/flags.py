"""The options that ``run`` and ``sweep`` share, with their help. In a sweep every value may be a list or a range."""

from __future__ import annotations

from typing import Annotated

import typer

_MODELS, _OUTPUT = "Models", "Output"

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="METHOD.OPTION=VALUE", help="An option of a method; see dlmbench show METHOD. Repeatable."
    ),
]
Against = Annotated[str, typer.Option(help="Baselines that come along, or none.")]
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
Plugin = Annotated[str | None, typer.Option(help="Python file that registers a decoder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=_OUTPUT)]
