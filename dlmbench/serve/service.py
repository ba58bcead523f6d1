"""A decoder made ready to be asked: its engine, warm and priced, a worker around it, and the application over both."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from fastapi import FastAPI

from dlmbench import __version__
from dlmbench.engine import Engine, Request, build, network_hashes
from dlmbench.engine.calibrate import Measured
from dlmbench.engine.prompts import prompt_ids
from dlmbench.errors import RequestError
from dlmbench.request import ResolvedRun
from dlmbench.runs.environment import environment
from dlmbench.runs.record import Json
from dlmbench.runs.runner import without_places
from dlmbench.serve.app import Served, application
from dlmbench.serve.worker import EngineWorker, Limits

_PRICED = 3  # measurements of a forward's price; the median counts
_WARM = "The answer is the sum of the numbers. "


def service(run: ResolvedRun, limits: Limits) -> tuple[FastAPI, EngineWorker]:
    """The application of a run's decoder, and its worker, which is to be started; rows are no longer than the model's.

    Raises RequestError for a model that cannot be asked, and where answers leave no room for prompts.
    """
    with ThreadPoolExecutor(1) as apart:  # OpenMP keeps threads for each thread that computes, and too many wait idly
        return apart.submit(_service, run, limits).result()


def _service(run: ResolvedRun, limits: Limits) -> tuple[FastAPI, EngineWorker]:
    engine = build(run)
    if engine.needs_answers:
        raise RequestError(f"{run.preset.name} needs the right answers with every prompt, so it cannot be served.")
    most = engine.target.config.max_positions
    allowed = replace(limits, max_length=min(limits.max_length, most))
    if allowed.max_tokens >= allowed.max_length:
        raise RequestError(
            f"--gen-length {allowed.max_tokens} leaves no room for a prompt in {allowed.max_length} positions; lower it"
            + (f" (the model has {most})." if limits.max_length > most else " or raise --max-length.")
        )
    measured = _warm(engine, allowed.max_length)
    worker = EngineWorker(engine, allowed)
    return application(worker, Served(run.preset.name, _info(run, engine), measured.prices, run.spec.seed)), worker


def _warm(engine: Engine, max_length: int) -> Measured:
    """Decode a full batch once, so that the first client does not wait for what is made once, and price what it met."""
    tokens = max(1, min(4 * engine.target.block_length, max_length // 2))
    ids = prompt_ids(engine.tokenizer, _WARM * 4, False)[: max_length - tokens]
    engine.generate([Request(str(row), ids, tokens, seed=row) for row in range(engine.batch_size)])
    measured = engine.calibrate(_PRICED)
    engine.shapes.clear()
    return measured


def _info(run: ResolvedRun, engine: Engine) -> dict[str, Json]:
    """What /info tells of the server, places left out."""
    spec = run.spec
    return {
        "engine": "dlmbench",
        "version": __version__,
        "weights": dict(network_hashes(run)),
        "processor": environment(run.device).device,
        "label": run.label,
        "options": run.parameters,
        "cache": spec.cache,
        "sampling": {"temperature": spec.temperature, "top_k": spec.top_k, "top_p": spec.top_p},
        **without_places(engine.describe()),
    }
