"""What `run` and `sweep` do with ``--server``: the runner of servers, and its rows beside rows that were made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dlmbench.analysis.load import Results
from dlmbench.analysis.served import beside
from dlmbench.cli.console import Bars
from dlmbench.errors import RequestError
from dlmbench.request.run_spec import BASELINES, SERVED

if TYPE_CHECKING:
    from dlmbench.analysis.row import Row
    from dlmbench.request import RunSpec
    from dlmbench.runs.served import ServedRunner


def method_of(given: Mapping[str, object]) -> str:
    """The method that was asked for; a server is one. Raises RequestError for none."""
    if "method" in given:
        return str(given["method"])
    if "server" in given:
        return SERVED
    raise RequestError("--method is missing: name one of dlmbench list methods, or a server with --server.")


def all_served(specs: Sequence[RunSpec], *, dry_run: bool = False, elsewhere: bool = False, logits: int = 0) -> bool:
    """Are these runs a server's? Raises RequestError where only some are, and for what needs a decoder in reach.

    elsewhere: on a cluster. logits: items whose logits are to be recorded.
    """
    found = {spec.served for spec in specs}
    if found == {True, False}:
        raise RequestError("Some runs name a server and others decode here: make them in two commands, into one --out.")
    if found == {False}:
        return False
    for given, flag in ((dry_run, "--dry-run"), (elsewhere, "--executor ray"), (logits, "--record-logits")):
        if given:
            raise RequestError(f"{flag} is for what is decoded here, and --server decodes elsewhere: leave one out.")
    return True


def served_runner(bars: Bars) -> ServedRunner:
    """Raises RequestError when the client's package is not installed."""
    try:
        from dlmbench.runs.served import ServedRunner
    except ModuleNotFoundError as error:
        raise RequestError(f"--server needs {error.name}: pip install 'dlmbench[serve]'.") from error
    return ServedRunner(progress=bars)


def sentences(results: Results, against: Sequence[str]) -> dict[Row, list[str]]:
    """Each row beside those of the folders in ``--against``, in words."""
    folders = [name for name in against if name not in BASELINES]
    others = Results.load(*folders).rows if folders else []
    found = {row: [one.sentence for one in beside(row, others)] for row in results.rows}
    if folders and not any(found.values()):
        return {row: [f"no run in {', '.join(folders)} has these prompts"] for row in results.rows}
    return found
