"""Golden cases of Prophet: early commit by the gap in the answer window.

Compared: ids, every step, calls, row-forwards, the step that decided, the window's gap at every call, and the baseline
(the same loop without the rule, with the same fixed tokens).
"""

from __future__ import annotations

import math
from functools import partial

from dlmbench.decoders.prophet import Prophet, ProphetConfig
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.verify.cases import Case, Mismatch, equal, traced
from dlmbench.verify.rows import FIELDS, blocks_and_steps, compare, row_forwards, run

PARAMS = {
    "steps", "gen_length", "block_length", "temperature", "cfg_scale", "remasking", "answer_start", "answer_length",
    "constraints", "thresholds", "mask_id",
}  # fmt: skip
EXPECTED = {"ids", "nfe", "row_forwards", "exit_step", "gaps", "baseline_ids", "baseline_nfe", "steps"}
GAP_TOLERANCE = 1e-3
ORDERS = {"low_confidence": "confidence", "random": "random"}


def check(case: Case, device: str = "cpu") -> None:
    """Run a case and its baseline. Raises Mismatch."""
    case.know(FIELDS, PARAMS, EXPECTED)
    params, expected = case.params, case.expected
    if params["temperature"]:
        raise Mismatch("only greedy decoding is known for this method")
    block = params["block_length"]
    schedule = StaticConfig(steps=blocks_and_steps(params, block), schedule="quota", order=ORDERS[params["remasking"]])
    start = params["answer_start"]
    config = ProphetConfig(
        steps=schedule.steps, schedule=schedule.schedule, order=schedule.order, **params["thresholds"],
        answer_start=-1 if start is None else start, answer_length=params["answer_length"],
    )  # fmt: skip
    fixed = tuple((int(offset), token) for offset, token in (params["constraints"] or {}).items())
    decode = partial(run, case, block_length=block, guidance=params["cfg_scale"], fixed=fixed, device=device)
    batch = decode(Prophet(config))
    compare(case, batch)
    equal("row_forwards", row_forwards(batch), expected["row_forwards"])
    extras = [step["extra"] for step in traced(batch.rows[0])]
    exits = [number for number, extra in enumerate(extras, 1) if extra["settled"]]
    equal("exit_step", exits[0] if exits else None, expected["exit_step"])
    _gaps([extra["gap"] for extra in extras if not math.isnan(extra["gap"])], expected["gaps"])
    baseline = decode(Static(schedule))
    equal("baseline_ids", baseline.ids(), expected["baseline_ids"])
    equal("baseline_nfe", len(baseline.steps), expected["baseline_nfe"])


def _gaps(ours: list[float], expected: list[float]) -> None:
    equal("number of gaps", len(ours), len(expected))
    for step, (a, b) in enumerate(zip(ours, expected)):
        if not abs(a - b) <= GAP_TOLERANCE:
            raise Mismatch(f"gaps[{step}] is {a}, expected {b}, allowed difference {GAP_TOLERANCE}")
