"""Golden cases of LLaDA's own decoder.

Compared: ids, every step with empty ones, calls and row-forwards (guidance has two a call).
"""

from __future__ import annotations

from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.verify.cases import Case, equal
from dlmbench.verify.rows import FIELDS, blocks_and_steps, compare, row_forwards, run

PARAMS = {
    "steps", "gen_length", "block_length", "temperature", "cfg_scale", "remasking", "logits_eos_inf",
    "confidence_eos_eot_inf", "mask_id", "eos_id", "eot_id", "torch_seed",
}  # fmt: skip
ORDERS = {"low_confidence": "confidence", "random": "random"}


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    case.know(FIELDS, PARAMS, {"ids", "nfe", "row_forwards", "steps"})
    params = case.params
    steps = blocks_and_steps(params, params["block_length"])
    decoder = Static(StaticConfig(steps=steps, schedule="quota", order=ORDERS[params["remasking"]]))
    batch = run(
        case, decoder, params["block_length"], guidance=params["cfg_scale"], sampling=sampling_of(params),
        eos_id=params.get("eos_id"), device=device,
    )  # fmt: skip
    compare(case, batch)
    equal("row_forwards", row_forwards(batch), case.expected["row_forwards"])


def sampling_of(params: dict) -> Sampling:
    banned = (params["eos_id"],) if params["logits_eos_inf"] else ()
    last = (params["eos_id"], params["eot_id"]) if params["confidence_eos_eot_inf"] else ()
    return Sampling(params["temperature"], confidence="clean", banned=banned, last=last)
