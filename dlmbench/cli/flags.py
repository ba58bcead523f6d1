"""The options of a run as flags of a verb, read off the fields of `RunSpec`; and options that several verbs share."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

import typer

from dlmbench import files
from dlmbench.request.run_spec import OPTIONS, RunSpec
from dlmbench.runs.recording import TRACED as TRACED

_OUTPUT = "Output"
_KINDS = typing.get_type_hints(RunSpec)

Traces = Annotated[
    int,
    typer.Option(min=0, help="First N items whose steps are recorded, for report and diff.", rich_help_panel=_OUTPUT),
]
RecordLogits = Annotated[
    int,
    typer.Option(min=0, help="First N items whose logits are recorded, for selectors.", rich_help_panel=_OUTPUT),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=_OUTPUT)]


def takes_options(
    *,
    only: Collection[str] = (),
    without: Collection[str] = (),
    required: Collection[str] = (),
    many: Collection[str] = (),
    **defaults: str,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the verb takes the options of a run, all or those in `only`, but those in `without`, and gets, as
    its first argument, what the user gave of them, with ``set`` as it was written.

    only, without: names of options (threshold), or what they are about (`Option.about`). required: options that must
    be given. many: those that may be a list or a range, as a text. defaults: what an option is in this verb when it is
    not given, in the place of the field's own. The verb's other parameters stay its own: positional arguments before
    the options of a run, the rest behind them.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(verb, eval_str=True).parameters.values())[1:]
        arguments = [p for p in own if _is_argument(p)]
        fields = [f for f in dataclasses.fields(RunSpec) if not only or _among(f.name, only)]
        fields = [f for f in fields if not _among(f.name, without)]
        options = [_flag(f, f.name in required, f.name in many, defaults) for f in fields]

        def command(**values: Any) -> None:
            given = {p.name: values.pop(p.name) for p in options}
            verb(_given(given, defaults), **values)

        rest = [p for p in own if not _is_argument(p)]
        signature = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*arguments, *options, *rest)]
        command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in signature}
        command.__doc__, command.__name__ = verb.__doc__, verb.__name__
        return command

    return decorate


def _among(name: str, words: Collection[str]) -> bool:
    return name in words or OPTIONS[name].about in words


def flag_of(name: str) -> Any:
    """The annotation of one option of a run, for a verb that takes it alone."""
    field = next(f for f in dataclasses.fields(RunSpec) if f.name == name)
    return _flag(field, required=False, many=False, defaults={}).annotation


def _is_argument(parameter: inspect.Parameter) -> bool:
    return any(isinstance(one, typer.models.ArgumentInfo) for one in typing.get_args(parameter.annotation))


def _flag(field: dataclasses.Field, required: bool, many: bool, defaults: Mapping[str, str]) -> inspect.Parameter:
    """The parameter of a verb that stands for a field of `RunSpec`; None when it is not given."""
    known, name = OPTIONS[field.name], field.name
    kind = _KINDS[name]
    usual = None if field.default is dataclasses.MISSING else field.default
    shown = defaults.get(name) or known.shown or usual
    names, metavar = [f"--{name.replace('_', '-')}"], None
    default_shown = True if required else False if shown is None else str(shown)
    if name == "settings":
        hint: Any = list[str] | None
        names, metavar = ["--set"], "METHOD.OPTION=VALUE"
    elif kind == bool | None:
        hint, names = kind, [f"{names[0]}/--no-{name.replace('_', '-')}"]
    else:
        plain = [one for one in (int, float) if one in (kind, *typing.get_args(kind))]
        hint = plain[0] if len(plain) == 1 and str not in typing.get_args(kind) and not many else str
        hint = hint if required else hint | None
    default = inspect.Parameter.empty if required else None
    option = typer.Option(
        *names, help=known.help, rich_help_panel=known.panel, show_default=default_shown, metavar=metavar
    )
    annotation = Annotated[hint, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _given(values: Mapping[str, files.Json], defaults: Mapping[str, str]) -> dict[str, files.Json]:
    """What was given, ``--set`` under its own name, and the verb's defaults."""
    named = {"set" if name == "settings" else name: value for name, value in values.items()}
    given: dict[str, files.Json] = {name: value for name, value in named.items() if value not in (None, [], ())}
    return {**{name: value for name, value in defaults.items() if name not in given}, **given}


DataDir = flag_of("data_dir")
Plugin = flag_of("plugin")
