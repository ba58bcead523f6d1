"""Golden cases of multi-block decoding: d3LLM's on LLaDA and Dream, D2F's on LLaDA.

Compared: ids, every step (an EOS fill included), calls, blocks open at every call, and the blocks that the release
calls fully active, which follow from what is filled. The release counts one call too many when an EOS has ended a row.
Of D2F also the positions that each call runs and those that it finds stored.
"""

from __future__ import annotations

from dlmbench.decoders.d2f import D2F, D2FConfig
from dlmbench.decoders.multiblock import Multiblock, MultiblockConfig
from dlmbench.verify.cases import Case, Mismatch, equal, traced
from dlmbench.verify.rows import FIELDS, CaseRun, compare, run

PARAMS = {
    "gen_length", "block_length", "entropy_threshold", "block_add_threshold", "decoded_token_threshold", "early_stop",
    "eos_id", "temperature", "mask_id",
}  # fmt: skip


D2F_PARAMS = {
    "gen_length", "block_length", "threshold", "block_add_threshold", "decoded_token_threshold", "eos_id",
    "temperature", "mask_id",
}  # fmt: skip


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    if case.params["temperature"]:
        raise Mismatch("only greedy decoding is known for this method")
    (_d2f if case.raw["method"] == "multiblock_d2f" else _d3llm)(case, device)


def _d2f(case: Case, device: str) -> None:
    case.know(FIELDS, D2F_PARAMS, {"ids", "nfe", "query_tokens", "cached_before", "open_blocks", "steps"})
    params, expected = case.params, case.expected
    config = D2FConfig(params["threshold"], params["block_add_threshold"], params["decoded_token_threshold"])
    batch = run(case, D2F(config), params["block_length"], eos_id=params["eos_id"], device=device)
    compare(case, batch)
    opened = [step["extra"]["open_blocks"] for step in traced(batch.rows[0])]
    equal("open_blocks", opened, expected["open_blocks"])
    queries, (prompt,) = batch.queries(), batch.prompts
    equal("query_tokens", queries, expected["query_tokens"])
    ends = [min(number * params["block_length"], params["gen_length"]) for number in opened]
    cached = [prompt + end - tokens for end, tokens in zip(ends, queries)]
    equal("cached_before", cached, expected["cached_before"])


def _d3llm(case: Case, device: str) -> None:
    case.know(FIELDS, PARAMS, {"ids", "nfe", "reported_nfe", "open_blocks", "full_blocks", "steps"})
    params, expected = case.params, case.expected
    best = "first" if case.raw["family"] == "dream" else "everywhere"
    config = MultiblockConfig(params["entropy_threshold"], params["block_add_threshold"], best)
    batch = run(
        case, Multiblock(config), params["block_length"], eos_id=params.get("eos_id"),
        fill_after_eos=params["early_stop"], device=device,
    )  # fmt: skip
    compare(case, batch)
    ended = params["early_stop"] and params["eos_id"] in expected["ids"]
    equal("reported_nfe", len(batch.steps) + ended, expected["reported_nfe"])
    opened = [step["extra"]["open_blocks"] for step in traced(batch.rows[0])]
    equal("open_blocks", opened, expected["open_blocks"])
    full = _fully_active(batch, opened, params["block_length"], params["decoded_token_threshold"])
    equal("full_blocks", full, expected["full_blocks"])


def _fully_active(batch: CaseRun, opened: list[int], block: int, gate: float) -> list[int]:
    """At every call, the open blocks whose predecessor is filled to the share `gate`; the prompt is the first one's."""
    (row,), (prompt,) = batch.rows, batch.prompts
    filled: set[int] = set()
    counts = []
    for step, number in zip(traced(row), opened):
        shares = [1.0] + [sum((at - prompt) // block == each for at in filled) / block for each in range(number - 1)]
        counts.append(sum(share >= gate for share in shares))
        filled |= set(step["positions"])
    return counts
