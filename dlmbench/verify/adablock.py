"""Golden cases of AdaBlock on LLaDA and Dream.

Compared: ids, every step, lengths and calls of all blocks, calls on whole rows and on windows, and their tokens.
"""

from __future__ import annotations

from itertools import groupby

from dlmbench.backbone.bidirectional import CachePolicy
from dlmbench.decoders.adablock import AdaBlock, AdaBlockConfig
from dlmbench.verify.cases import Case, Mismatch, equal, traced
from dlmbench.verify.fastdllm import compare_work
from dlmbench.verify.rows import FIELDS, compare, run

PARAMS = {
    "gen_length", "block_length", "threshold", "delimiter_ids", "delimiter_threshold", "cache", "temperature",
    "mask_id",
}  # fmt: skip
EXPECTED = {"ids", "nfe", "nfe_full", "nfe_cached", "tokens_processed", "block_lengths", "block_nfe", "steps"}
NEVER = 2.0  # a confidence that nothing passes


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    case.know(FIELDS, PARAMS, EXPECTED)
    params, expected = case.params, case.expected
    if params["temperature"]:
        raise Mismatch("only greedy decoding is known for this method")
    bound = NEVER if params["delimiter_threshold"] is None else params["delimiter_threshold"]
    decoder = AdaBlock(AdaBlockConfig(params["threshold"], tuple(params["delimiter_ids"]), bound))
    batch = run(case, decoder, params["block_length"], policy=CachePolicy(params["cache"]), device=device)
    compare(case, batch)
    compare_work(batch, expected)
    blocks = [step["extra"]["block_end"] for step in traced(batch.rows[0])]
    ends = [end for end, _ in groupby(blocks)]
    equal("block_nfe", [len(list(steps)) for _, steps in groupby(blocks)], expected["block_nfe"])
    starts = [batch.prompts[0], *ends[:-1]]
    equal("block_lengths", [end - start for start, end in zip(starts, ends)], expected["block_lengths"])
