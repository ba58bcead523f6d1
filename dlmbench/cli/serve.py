"""`dlmbench serve`: a method over a model behind HTTP."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dlmbench.cli import flags
from dlmbench.cli.console import print_notes, stderr
from dlmbench.errors import RequestError
from dlmbench.request import RunSpec
from dlmbench.request.values import parse_assignments

_SERVER = "Server"


@flags.takes_options(without=("items", "server", "chat_template"), method="threshold", gen_length="256")
def serve(
    given: dict[str, Any],
    host: Annotated[str, typer.Option(help="Address to listen at.", rich_help_panel=_SERVER)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.", rich_help_panel=_SERVER)] = 8000,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; more are refused.", rich_help_panel=_SERVER)
    ] = 64,
    max_length: Annotated[
        int, typer.Option(min=2, help="Positions of prompt and answer together.", rich_help_panel=_SERVER)
    ] = 2048,
    time_limit: Annotated[
        float, typer.Option(min=0.1, help="Seconds from a request to its answer.", rich_help_panel=_SERVER)
    ] = 600.0,
) -> None:
    """Serve one method over HTTP for other harnesses: /generate and an OpenAI-compatible interface.

    --gen-length is the most tokens that a request may ask for, and what it gets when it names none; --batch-size the
    most rows that are decoded together.
    """
    try:
        from dlmbench.serve.server import Server
        from dlmbench.serve.service import service
        from dlmbench.serve.worker import Limits
    except ModuleNotFoundError as error:
        raise RequestError(f"serve needs {error.name}: pip install 'dlmbench[serve]'.") from error

    run = RunSpec(task="nano-gsm", against=(), settings=parse_assignments(given.pop("set", ())), **given).resolve()
    print_notes(note for note in run.notes if "near zero" not in note)
    app, worker = service(run, Limits(run.spec.gen_length or 256, max_length, queue, time_limit))
    worker.start()
    rows = worker.engine.batch_size
    stderr().print(f"{run.label} on {run.preset.name}, {rows} rows: http://{host}:{port}", soft_wrap=True)
    try:
        Server(app, worker, host, port).run()
    finally:
        worker.stop(0.0)
