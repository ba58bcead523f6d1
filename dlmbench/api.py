"""What `import dlmbench` offers to Python, beside the specs: an engine to decode with, runs, and tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlmbench.analysis.load import Results
from dlmbench.engine import Engine, Generation, Request, build
from dlmbench.engine.prompts import prompt_ids
from dlmbench.models.presets import default_model
from dlmbench.report.columns import record
from dlmbench.request import RunSpec
from dlmbench.request.resolved import with_baselines
from dlmbench.runs.local import run_all

if TYPE_CHECKING:
    import pandas


def load(model: str | None = None, *, method: str = "threshold", **options: Any) -> Engine:
    """An engine that decodes with `method` on `model`.

    `options` are those of ``dlmbench run``, with underscores: threshold, block_length, batch_size, settings, ...
    Raises RequestError for a name or combination that does not exist.
    """
    return build(RunSpec(method=method, task="nano-gsm", model=model or default_model(), **options).resolve())


def decode(
    engine: Engine, prompts: Sequence[str | Sequence[int]], *, max_tokens: int = 128, stop: Sequence[str] = (),
    seed: int = 0, trace: bool = False,
) -> list[Generation]:  # fmt: skip
    """Generations for texts or lists of ids, in order. A chat model's markup is yours to add.

    Raises RequestError for an empty prompt.
    """
    requests = []
    for number, prompt in enumerate(prompts):
        ids = prompt_ids(engine.tokenizer, prompt, False) if isinstance(prompt, str) else prompt
        requests.append(Request(str(number), tuple(ids), max_tokens, tuple(stop), seed + number))
    return engine.generate(requests, trace=trace)


def run(spec: RunSpec) -> Path:
    """Make one run and its baselines, or find them finished; the folder of the run."""
    return run_all(with_baselines([spec]))[-1]


def read_results(folder: str | Path) -> pandas.DataFrame:
    """One row for every finished run at or below `folder`, with the columns of table.csv.

    Raises RequestError when there is none.
    """
    import pandas

    return pandas.DataFrame([record(row) for row in Results.load(folder).rows])
