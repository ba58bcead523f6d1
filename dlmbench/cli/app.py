"""The command line: one file a verb, errors as one or two sentences, exit codes 0 (ok), 1 (failed), 2 (wrong request).

A verb is imported when it is called, so that ``--help`` answers at once and verbs may import what they need at the top.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import warnings
from importlib import import_module
from typing import NoReturn, cast

import typer
from typer.core import TyperCommand, TyperGroup

from dlmbench import __version__
from dlmbench.errors import DlmbenchError

VERBS = {  # what --help says of each: its docstring's first paragraph
    "run": "Run one method on one task, with its baselines. The same command resumes it.",
    "sweep": "Run many settings, then write table and figure. The same command resumes it.",
    "plot": "Draw finished runs, accuracy against cost by default: .png, .svg and .pdf.",
    "report": "Write the report: summary, figures, tables, every item, and recorded decodings to replay.",
    "runs": "List the runs of a folder: method, setting, items, accuracy, cost, when, finished or not.",
    "validate": "Check that hashes, counts, scores and tables follow from the samples; exit code 1 if not.",
    "card": "Print results as a block for a model card (model-index).",
    "recommend": "Say which setting to use, or that the items are too few to tell.",
    "compare": "Print published figures, ours of the same setting, and the difference.",
    "diff": "Show which items two runs answer differently, and the step in which they part.",
    "selectors": "Show the states that --record-logits kept to other selectors: who reveals what, without a model.",
    "generate": "Decode one prompt.",
    "score": "Score stored generations again and renew their metrics; generated code runs in the sandbox only.",
    "verify": "Replay golden traces; exit code 1 when any case fails.",
    "check": "Try a decoder on tiny random networks; exit code 1 when a promise is broken.",
    "limits": "Accuracy and forwards of a decoder on an ideal model, where only the rule loses, and on a too sure one.",
    "bench": "Time forwards and fixed-length decoding beside a plain transformers loop; a table, then one JSON line.",
    "list": "List methods, models, tasks or recipes.",
    "show": "Show a method's options, a model's settings, a task, or a recipe's plan.",
    "doctor": "Check versions, devices, shipped models, sandbox and hub. Exit code 1 when something needed is missing.",
    "serve": "Serve one method over HTTP for other harnesses: /generate and an OpenAI-compatible interface.",
    "train": "Train a model or a head as a recipe says, from the checkpoint in the output folder if there is one.",
}
_DEBUG = "--debug"
_INTERRUPTED = 130
_STOPPED = "Stopped. Nothing that was finished is lost; the same command goes on from here."


class _Verbs(TyperGroup):
    """The verbs, each imported when it is called."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return list(VERBS)

    def get_command(self, ctx: typer.Context, name: str) -> TyperCommand | None:  # type: ignore[override]
        return TyperCommand(name, help=VERBS[name]) if name in VERBS else None

    def resolve_command(self, ctx: typer.Context, args: list[str]):  # type: ignore[override]
        name, _, rest = super().resolve_command(ctx, args)
        return name, _verb(str(name)), rest


def _verb(name: str) -> TyperCommand:
    """The command of a verb."""
    alone = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    alone.command(name)(getattr(import_module(f"dlmbench.cli.{name}"), name))
    return cast(TyperCommand, typer.main.get_command(alone))


app = typer.Typer(
    name="dlmbench",
    cls=_Verbs,
    help="Which decoding strategy for a diffusion language model gives the best accuracy for its cost?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: bool = typer.Option(False, _DEBUG, help="Show the traceback of an error (works after a verb too)."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Options of all verbs; `main` has taken --debug out already."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; ends the process with the exit code of the verb."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = _DEBUG in given
    warnings.showwarning = _note  # type: ignore[assignment]  # it says less than it is told
    try:
        code = app([argument for argument in given if argument != _DEBUG], standalone_mode=False)
        sys.stdout.flush()
    except DlmbenchError as error:
        _leave(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        _leave(_STOPPED, _INTERRUPTED, debug)
    except BrokenPipeError:
        _leave_silently()
    except SystemExit as leaving:  # what rich and typer make of an output that nobody reads any more
        if isinstance(leaving.__context__, BrokenPipeError):
            _leave_silently()
        raise
    except Exception as error:
        if hasattr(error, "show"):  # typer's own, about the arguments
            error.show()
            sys.exit(getattr(error, "exit_code", 2))
        text = " ".join(str(error).split())
        _leave(f"{type(error).__name__}: {text[:300]} (a traceback is shown with {_DEBUG}).", 1, debug)
    if code == _INTERRUPTED:  # typer catches the interrupt and returns its exit code
        _leave(_STOPPED, _INTERRUPTED, False)
    if arguments is None:
        _end(code or 0)
    sys.exit(code or 0)


def _end(code: int) -> NoReturn:
    """Exit as an interpreter does, but without taking torch apart, which is a third of a second."""
    if all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _note(message: Warning | str, category: type[Warning], filename: str, *_: object) -> None:
    """A warning as one line, without the place in the code that it comes from."""
    word = "note    " if category is RuntimeWarning else f"{category.__name__}: "
    print(f"{word}{message}", file=sys.stderr)


def _leave_silently() -> None:
    """The reader of our output has left (``| head``), which is no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered is flushed at exit
    sys.exit(0)


def _leave(message: str, code: int, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"dlmbench: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
