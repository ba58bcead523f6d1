"""Golden cases of LoPA on Dream.

Compared: ids, every round (branches, winner, what the next base has more), rounds and forwards of branches. Of these
the release makes some twice; the round in which it notices the end is the last that it reports.
"""

from __future__ import annotations

from dlmbench.decoders.lopa import LoPA, LoPAConfig
from dlmbench.verify.cases import Case, Mismatch, equal, traced
from dlmbench.verify.rows import FIELDS, run

PARAMS = {
    "gen_length", "block_length", "threshold", "block_add_threshold", "decoded_token_threshold", "branching_factor",
    "branch_topp", "selection_conf_alpha", "eos_id", "temperature", "mask_id",
}  # fmt: skip
EXPECTED = {"ids", "nfe", "row_forwards", "duplicate_forwards", "reported_steps", "steps"}


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    case.know(FIELDS, PARAMS, EXPECTED)
    params, expected = case.params, case.expected
    if params["temperature"]:
        raise Mismatch("only greedy decoding is known for this method")
    branches = params["branching_factor"] if params["branching_factor"] > 1 else 0
    config = LoPAConfig(
        params["threshold"], params["block_add_threshold"], params["decoded_token_threshold"], branches,
        params["selection_conf_alpha"], params["branch_topp"],
    )  # fmt: skip
    batch = run(case, LoPA(config), params["block_length"], eos_id=params["eos_id"], device=device)
    (row,) = batch.rows
    equal("ids", row.raw_ids, expected["ids"])
    equal("nfe", len(traced(row)), expected["nfe"])
    rounds = []
    for step in traced(row):
        tried, winner = step["extra"]["branches"], step["extra"]["winner"]
        rounds.append({
            "positions": step["positions"], "tokens": step["tokens"], "branches": [at for at in tried if at >= 0],
            "winner": winner if winner >= 0 else None,
        })  # fmt: skip
    equal("steps", rounds, expected["steps"])
    equal("row_forwards", len(rounds) + row.proposed + expected["duplicate_forwards"], expected["row_forwards"])
    equal("reported_steps", len(rounds) + 1, expected["reported_steps"])
