"""Golden cases of selectors: full forwards over LLaDA or Dream, and a rule that chooses positions.

Compared: ids, every step, calls, row-forwards (a row that waits for the batch is carried along, as the official loops
do), steps in which nothing passed, and the calls of the plain threshold.
"""

from __future__ import annotations

from dataclasses import replace

from dlmbench.backbone.configuration import read_config
from dlmbench.decoders.base import Decoder
from dlmbench.decoders.hierarchy import Hierarchy, HierarchyConfig
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.verify.cases import Case, Mismatch, equal
from dlmbench.verify.rows import FIELDS, Batch, compare, run

PARAMS = {"gen_length", "block_length", "temperature", "mask_id"}
EXPECTED = {"ids", "nfe", "steps", "row_forwards", "forced_steps"}
MORE_PARAMS = {"hierarchy": {"threshold", "low_threshold", "early_stop"}}
MORE_EXPECTED = {"hierarchy": {"threshold_nfe"}}


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    method, params, expected = case.raw["method"], case.params, case.expected
    case.know(FIELDS, PARAMS | MORE_PARAMS[method], EXPECTED | MORE_EXPECTED[method])
    if params["temperature"]:
        raise Mismatch("only greedy decoding is known for this method")
    batch = _run(case, _decoder(method, params), device)
    compare(case, batch)
    if params.get("early_stop"):  # counted of the run that goes on: those of the blocks behind come on top
        equal("forced_steps", True, _forced(batch) >= expected["forced_steps"])
    else:
        equal("forced_steps", _forced(batch), expected["forced_steps"])
    if "row_forwards" in expected:
        equal("row_forwards", len(batch.steps) * len(batch.rows), expected["row_forwards"])
    if "threshold_nfe" in expected:
        plain = _run(case, Threshold(ThresholdConfig(params["threshold"])), device)
        equal("threshold_nfe", len(plain.steps), expected["threshold_nfe"])


def _run(case: Case, decoder: Decoder, device: str) -> Batch:
    block = case.params["block_length"]
    batch = run(case, decoder, block, device=device)
    return _stopped(case, batch, block) if case.params.get("early_stop") else batch


def _forced(batch: Batch) -> int:
    return sum(row.fallbacks for row in batch.rows)


def _stopped(case: Case, batch: Batch, block: int) -> Batch:
    """What dInfer makes of the run: a row ends with the block that holds an EOS, and the rest is filled with it."""
    (row,), eos = batch.rows, read_config(case.weights(), case.told("full"))[0].eos_ids[0]
    ids = row.raw_ids
    blocks = ids.index(eos) // block + 1 if eos in ids else len(ids) // block
    numbers = sorted({step["block"] for step in row.trace})[:blocks]
    trace = [step for step in row.trace if step["block"] in numbers]
    filled = ids[: blocks * block] + [eos] * (len(ids) - blocks * block)
    return replace(batch, rows=[replace(row, raw_ids=filled, trace=trace)])


def _decoder(method: str, params: dict) -> Decoder:
    match method:
        case "hierarchy":
            return Hierarchy(HierarchyConfig(params["threshold"], params["low_threshold"]))
    raise Mismatch(f"method {method!r} is not known")

