"""`dlmbench serve`: a method over a model behind HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlmbench import __version__
from dlmbench.cli import flags
from dlmbench.cli.console import print_notes, stderr
from dlmbench.errors import RequestError
from dlmbench.request import RunSpec
from dlmbench.request.run_spec import OPTIONS
from dlmbench.request.values import parse_assignments
from dlmbench.runs.runner import without_places

if TYPE_CHECKING:
    from dlmbench.engine import Engine
    from dlmbench.engine.calibrate import Measured
    from dlmbench.request import ResolvedRun

_SERVER = "Server"
_PRICED = 3  # measurements of a forward's price; the median counts
_WARM = "The answer is the sum of the numbers. "


@flags.takes_options(without=("items", "chat_template"), method="threshold", gen_length="256")
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
    rows that are decoded together, all of which are computed even while fewer are in use.
    """
    try:
        from dlmbench.serve.app import Served, application
        from dlmbench.serve.server import Server
        from dlmbench.serve.worker import EngineWorker, Limits
    except ModuleNotFoundError as error:
        raise RequestError(f"serve needs {error.name}: pip install 'dlmbench[serve]'.") from error
    from dlmbench.engine import build

    run = RunSpec(task="nano-gsm", against=(), settings=parse_assignments(given.pop("set", ())), **given).resolve()
    print_notes(note for note in run.notes if "near zero" not in note)
    engine = build(run)
    if engine.needs_answers:
        raise RequestError(f"{run.preset.name} needs the right answers with every prompt, so it cannot be served.")
    most = engine.target.config.max_positions
    limits = Limits(run.spec.gen_length or 256, min(max_length, most), queue, time_limit)
    if limits.max_tokens >= limits.max_length:
        raise RequestError(
            f"--gen-length {limits.max_tokens} leaves no room for a prompt in {limits.max_length} positions; lower it"
            + (f" (the model has {most})." if max_length > most else " or raise --max-length.")
        )
    measured = _warm(engine, limits.max_length)
    worker = EngineWorker(engine, limits)
    app = application(worker, Served(run.preset.name, _info(run, engine), measured.prices, run.spec.seed))
    worker.start()
    stderr().print(f"{run.label} on {run.preset.name}, {engine.batch_size} rows: http://{host}:{port}", soft_wrap=True)
    try:
        Server(app, worker, host, port).run()
    finally:
        worker.stop(0.0)


def _warm(engine: Engine, max_length: int) -> Measured:
    """Decode a full batch once, so that the first client does not wait for what is made once, and price what it met."""
    from dlmbench.engine import Request
    from dlmbench.engine.prompts import prompt_ids

    tokens = max(1, min(4 * engine.target.block_length, max_length // 2))
    ids = prompt_ids(engine.tokenizer, _WARM * 4, False)[: max_length - tokens]
    engine.generate([Request(str(row), ids, tokens, seed=row) for row in range(engine.batch_size)])
    measured = engine.calibrate(_PRICED)
    engine.shapes.clear()
    return measured


def _info(run: ResolvedRun, engine: Engine) -> dict[str, Any]:
    """What /info tells of the server, places left out."""
    return {
        "engine": "dlmbench",
        "version": __version__,
        "label": run.label,
        "options": run.parameters,
        "cache": run.spec.cache,
        "sampling": {name: getattr(run.spec, name) for name, one in OPTIONS.items() if one.key.startswith("sampling.")},
        **without_places(engine.describe()),
    }
