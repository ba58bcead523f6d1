"""The command line: one file a verb, errors as one or two sentences, exit codes 0 (ok), 1 (failed), 2 (wrong request).

Verbs are imported light and do their heavy imports inside, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from importlib import import_module

import typer

from dlmbench.errors import DlmbenchError

VERBS = ("run", "sweep", "plot", "generate", "score", "verify", "check", "bench", "list", "show", "doctor", "train")
_DEBUG = "--debug"

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
        from importlib.metadata import version

        print(version("dlmbench"))
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
    try:
        app([argument for argument in arguments if argument != _DEBUG])
    except DlmbenchError as error:
        _leave(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        _leave("Stopped. Nothing that was finished is lost; the same command goes on from here.", 130, debug)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left, which is no error
        sys.exit(0)
    except Exception as error:
        text = " ".join(str(error).split())
        _leave(f"{type(error).__name__}: {text[:300]} (a traceback is shown with {_DEBUG}).", 1, debug)


def _leave(message: str, code: int, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"dlmbench: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
