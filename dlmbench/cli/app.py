"""The command line: one file a verb, errors as one or two sentences, exit codes 0 (ok), 1 (failed), 2 (wrong request).

Verbs are imported light and do their heavy imports inside, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module

import typer

from dlmbench.errors import DlmbenchError

VERBS = (
    "run",
    "sweep",
    "plot",
    "report",
    "recommend",
    "compare",
    "diff",
    "generate",
    "score",
    "verify",
    "check",
    "limits",
    "bench",
    "list",
    "show",
    "doctor",
    "train",
)
_DEBUG = "--debug"
_INTERRUPTED = 130
_STOPPED = "Stopped. Nothing that was finished is lost; the same command goes on from here."

app = typer.Typer(
    name="dlmbench",
    help="Which decoding strategy for a diffusion language model gives the best accuracy for its cost?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from dlmbench import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: bool = typer.Option(False, _DEBUG, help="Show the traceback of an error (works after a verb too)."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Options of all verbs; `main` has taken --debug out already."""


for _verb in VERBS:
    app.command(_verb)(getattr(import_module(f"dlmbench.cli.{_verb}"), _verb))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; ends the process with the exit code of the verb."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = _DEBUG in arguments
    warnings.showwarning = _note
    try:
        code = app([argument for argument in arguments if argument != _DEBUG], standalone_mode=False)
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
            sys.exit(error.exit_code)
        text = " ".join(str(error).split())
        _leave(f"{type(error).__name__}: {text[:300]} (a traceback is shown with {_DEBUG}).", 1, debug)
    if code == _INTERRUPTED:  # typer catches the interrupt and returns its exit code
        _leave(_STOPPED, _INTERRUPTED, False)
    sys.exit(code or 0)


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
