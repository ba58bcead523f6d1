"""Golden cases of DAEDAL on LLaDA.

Compared, row by row: ids (tail of EOS included), the answer's lengths while it is sized, every fill, where something
was inserted, the length after every call, and calls; of a batch also the calls that official code makes, whose rows
wait for each other before they are filled.
"""

from __future__ import annotations

from collections.abc import Iterable

from dlmbench.decoders.daedal import Daedal, DaedalConfig
from dlmbench.engine import Generation
from dlmbench.engine.request import TracedStep
from dlmbench.verify.cases import Case, Mismatch, equal, traced
from dlmbench.verify.rows import FIELDS, run

OPTIONS = {  # of the release -> ours
    "high_conf_threshold": "tau", "low_conf_threshold": "low", "initial_gen_length": "initial",
    "expansion_factor": "expansion", "eos_confidence_threshold": "enough", "expand_eos_confidence_threshold": "ending",
    "eos_check_tokens": "checked",
}  # fmt: skip
PARAMS = {*OPTIONS, "max_gen_length", "block_length", "eos_id", "temperature", "mask_id"}
EXPECTED = {"ids", "nfe", "length_calls", "lengths", "gen_length", "row_nfe", "steps"}


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    case.know(FIELDS, PARAMS, EXPECTED)
    params, expected = case.params, case.expected
    if params["temperature"]:
        raise Mismatch("only greedy decoding is known for this method")
    decoder = Daedal(DaedalConfig(**{ours: params[theirs] for theirs, ours in OPTIONS.items()}))
    batch = run(
        case, decoder, params["block_length"], eos_id=params["eos_id"], gen_length=params["max_gen_length"],
        device=device,
    )  # fmt: skip
    sizing = [[step for step in traced(row) if _estimates(step)] for row in batch.rows]
    filling = [[step for step in traced(row) if not _estimates(step)] for row in batch.rows]
    one = len(batch.rows) == 1

    def rows(values: Iterable) -> object:
        values = list(values)
        return values[0] if one else values

    equal("ids", batch.ids(), expected["ids"])
    equal("gen_length", rows(len(row.raw_ids) for row in batch.rows), expected["gen_length"])
    equal("lengths", rows([step["extra"]["length"] for step in steps] for steps in sizing), expected["lengths"])
    equal("steps", rows(map(_filled, filling, batch.rows)), expected["steps"])
    equal("row_nfe", rows(len(traced(row)) for row in batch.rows), expected["row_nfe"])
    equal("length_calls", max(map(len, sizing)), expected["length_calls"])
    equal("nfe", max(map(len, sizing)) + max(map(len, filling)), expected["nfe"])


def _estimates(step: TracedStep) -> bool:
    return step["forwards"][0]["kind"] == "estimate"


def _filled(steps: list[TracedStep], row: Generation) -> list[dict]:
    """Steps as the case writes them, the length being that after the call."""
    lengths = [step["extra"]["length"] for step in steps[1:]] + [len(row.raw_ids)]
    found = []
    for step, length in zip(steps, lengths):
        proposed = dict(zip(step["scores"]["positions"], step["scores"]["tokens"]))
        filled, inserted = ([at for at in step["extra"][name] if at >= 0] for name in ("filled", "inserted"))
        tokens = [proposed[at] for at in filled]
        found.append({"positions": filled, "tokens": tokens, "inserted": inserted, "length": length})
    return found
