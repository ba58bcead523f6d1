"""Golden cases of iLLaDA's var_generate: each block is appended to what is there and decoded as an answer of its own,
with as many steps, so that no masks of later blocks exist. Its other decoder is LLaDA's.

Compared: ids, every step, calls and row-forwards. No stop rule takes part.
"""

from __future__ import annotations

from dataclasses import replace

from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.verify.cases import Case, Mismatch, equal
from dlmbench.verify.llada import ORDERS, PARAMS, sampling_of
from dlmbench.verify.rows import FIELDS, prompts, row_forwards, run


def check(case: Case, device: str = "cpu") -> None:
    """Run a case block by block. Raises Mismatch."""
    case.know(FIELDS, PARAMS, {"ids", "nfe", "row_forwards", "steps"})
    params, expected = case.params, case.expected
    blocks, rest = divmod(params["gen_length"], params["block_length"])
    if rest:
        raise Mismatch("gen_length is no multiple of the block")
    (prompt,), _ = prompts(case)
    config = StaticConfig(steps=params["steps"], schedule="quota", order=ORDERS[params["remasking"]])
    answer: list[int] = []
    steps: list[dict] = []
    rows = 0.0
    for _ in range(blocks):
        raw = {
            **case.raw, "prompt_ids": prompt + answer, "attention_mask": None,
            "params": {**params, "gen_length": params["block_length"]},
        }  # fmt: skip
        batch = run(
            replace(case, raw=raw), Static(config), params["block_length"], guidance=params["cfg_scale"],
            sampling=sampling_of(params), eos_id=params.get("eos_id"), device=device,
        )  # fmt: skip
        answer, steps, rows = answer + batch.ids(), steps + batch.official_steps(), rows + row_forwards(batch)
    equal("ids", answer, expected["ids"])
    equal("nfe", len(steps), expected["nfe"])
    equal("steps", steps, expected["steps"])
    equal("row_forwards", rows, expected["row_forwards"])
