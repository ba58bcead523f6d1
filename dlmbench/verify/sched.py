"""Golden cases of SchED on Dream: early commit by a falling bar on the gap.

Compared: ids, every step with empty ones, calls, the step that decided, and gap and bar of every call.
"""

from __future__ import annotations

from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.sched import Sched, SchedConfig
from dlmbench.verify.cases import Case, close, equal, traced
from dlmbench.verify.dream import ORDERS
from dlmbench.verify.rows import FIELDS, compare, run

PARAMS = {
    "steps", "gen_length", "alg", "eps", "tau_mode", "tau_high", "tau_low", "tau_k", "stat", "q", "answer_region",
    "average_over_masked", "min_progress", "patience_steps", "max_change_ratio", "mask_id",
}  # fmt: skip
TOLERANCE = 1e-3
STATS = {"mean": "mean", "median": "median", "q": "quantile", "quantile": "quantile", "percentile": "quantile"}
REGIONS = {"all": "row", "tail": "answer", "last": "answer"}


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    case.know(FIELDS, PARAMS, {"ids", "nfe", "exit_step", "gaps", "bounds", "steps"})
    params, expected = case.params, case.expected
    config = SchedConfig(
        steps=params["steps"], schedule="dream", order=ORDERS[params["alg"]], eps=params["eps"],
        high=params["tau_high"], low=params["tau_low"], curve=params["tau_mode"], rate=params["tau_k"],
        stat=STATS[params["stat"]], quantile=params.get("q", 0.2), region=REGIONS[params["answer_region"]],
        average="masks" if params["average_over_masked"] else "answer", min_progress=params["min_progress"],
        patience=params["patience_steps"], max_change=params["max_change_ratio"],
    )  # fmt: skip
    batch = run(case, Sched(config), params["gen_length"], sampling=Sampling(confidence="filtered"), device=device)
    compare(case, batch)
    extras = [step["extra"] for step in traced(batch.rows[0])]
    exits = [number for number, extra in enumerate(extras, 1) if extra["settled"]]
    equal("exit_step", exits[0] if exits else None, expected["exit_step"])
    for name, key in (("gap", "gaps"), ("bar", "bounds")):
        close(key, [extra[name] for extra in extras], expected[key], TOLERANCE)
