"""dlmbench: benchmark the decoding strategies of diffusion language models on one runtime.

From Python::

    import dlmbench
    model = dlmbench.load("nano", method="threshold", threshold=0.8)
    question = "Tom has 12 apples. Tom buys 3 bags of 8 apples. Tom loses 7 apples. How many apples does Tom have?"
    print(dlmbench.decode(model, [question + "<|sep|>"])[0].text)
    folder = dlmbench.run(dlmbench.RunSpec(method="threshold", task="nano-gsm", limit=20))
    table = dlmbench.read_results(folder)

Nothing heavy is imported before one of these is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["RunSpec", "SweepSpec", "decode", "load", "read_results", "run"]

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas

    from dlmbench.engine import Engine, Generation
    from dlmbench.request import RunSpec, SweepSpec


def __getattr__(name: str) -> Any:
    if name in ("RunSpec", "SweepSpec"):
        from dlmbench import request

        return getattr(request, name)
    raise AttributeError(f"module 'dlmbench' has no attribute {name!r}")


def load(model: str | None = None, *, method: str = "threshold", **options: Any) -> Engine:
    """An engine that decodes with `method` on `model`.

    `options` are those of ``dlmbench run``, with underscores: threshold, block_length, batch_size, settings, ...
    Raises RequestError for a name or combination that does not exist.
    """
    from dlmbench.engine import build
    from dlmbench.models.presets import default_model
    from dlmbench.request import RunSpec

    return build(RunSpec(method=method, task="nano-gsm", model=model or default_model(), **options).resolve())


def decode(
    engine: Engine, prompts: Sequence[str | Sequence[int]], *, max_tokens: int = 128, stop: Sequence[str] = (),
    seed: int = 0, trace: bool = False,
) -> list[Generation]:  # fmt: skip
    """Generations for texts or lists of ids, in order. A chat model's markup is yours to add.

    Raises RequestError for an empty prompt.
    """
    from dlmbench.engine import Request
    from dlmbench.engine.prompts import prompt_ids

    requests = []
    for number, prompt in enumerate(prompts):
        ids = prompt_ids(engine.tokenizer, prompt, False) if isinstance(prompt, str) else prompt
        requests.append(Request(str(number), tuple(ids), max_tokens, tuple(stop), seed + number))
    return engine.generate(requests, trace=trace)


def run(spec: RunSpec) -> Path:
    """Make one run and its baselines, or find them finished; the folder of the run."""
    from dlmbench.request.resolved import with_baselines
    from dlmbench.runs.local import run_all

    return run_all(with_baselines([spec]))[-1]


def read_results(folder: str | Path) -> pandas.DataFrame:
    """One row for every finished run at or below `folder`, with the columns of table.csv.

    Raises RequestError when there is none.
    """
    import pandas

    from dlmbench.analysis.load import Results
    from dlmbench.report.columns import record

    return pandas.DataFrame([record(row) for row in Results.load(folder).rows])
