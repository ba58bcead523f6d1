"""Results as the block that a model card on the hub takes: YAML, ``model-index``."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from dlmbench import __version__
from dlmbench.analysis import text
from dlmbench.analysis.row import Row
from dlmbench.request.command import command


def model_card(rows: Sequence[Row]) -> str:
    """The block, models in the order of their rows; between ``---`` at the top of a card."""
    models: dict[str, list[Row]] = {}
    for row in rows:
        models.setdefault(row.model, []).append(row)
    index = [{"name": model, "results": [_result(row) for row in found]} for model, found in models.items()]
    return yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True, width=120)


def _result(row: Row) -> dict[str, object]:
    facts, metrics = row.manifest.task, row.metrics
    shots = "" if facts.num_fewshot is None else f", {facts.num_fewshot}-shot"
    interval = text.interval(row.accuracy, metrics.accuracy_low, metrics.accuracy_high)
    where = f"{row.device}, batch {row.batch_size}"
    found = [
        _metric("accuracy", f"accuracy, {row.label}{shots}, {interval}", 100 * row.accuracy, 1),
        _metric("nfe", f"forwards an item, {row.label}", metrics.nfe, 2),
        _metric("cost", f"cost of an item in plain forwards, {row.label}, {where}", row.cost, 2),
        _metric("tokens_per_second", f"tokens/s, decode only, {row.label}, {where}", row.tps, 0),
    ]
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": facts.name, "type": facts.name, "split": row.split},
        "metrics": [one for one in found if one["value"] is not None],
        "source": {"name": f"dlmbench {__version__}: {command(row.manifest.spec)}"},
    }


def _metric(kind: str, name: str, value: float | None, digits: int) -> dict[str, object]:
    return {"type": kind, "name": name, "value": None if value is None else round(value, digits), "verified": False}
