"""Golden cases of dKV-Cache-Decode on LLaDA.

Compared: ids, every step, calls on whole rows and on what is not kept, query tokens of every call (of one row) and of
all together, and the ids of the same run without a cache.
"""

from __future__ import annotations

from dlmbench.backbone.bidirectional import CachePolicy
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.verify.cases import Case, Mismatch, equal
from dlmbench.verify.rows import FIELDS, blocks_and_steps, compare, run

PARAMS = {
    "steps", "gen_length", "block_length", "cache_reloading_step", "enable_cache", "temperature", "remasking",
    "mask_id",
}  # fmt: skip
EXPECTED = {"ids", "nfe", "nfe_full", "nfe_cached", "query_tokens", "tokens_processed", "nocache_ids", "steps"}


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    case.know(FIELDS, PARAMS, EXPECTED)
    params, expected = case.params, case.expected
    if params["temperature"] or params["remasking"] != "low_confidence":
        raise Mismatch("only greedy decoding by confidence is known for this method")
    block = params["block_length"]
    decoder = Static(StaticConfig(steps=blocks_and_steps(params, block), schedule="quota"))
    policy = CachePolicy("dkv", reload_every=params["cache_reloading_step"])
    batch = run(case, decoder, block, policy=policy if params["enable_cache"] else None, device=device)
    compare(case, batch)
    firsts = [next(step for step in call if step) for call in batch.steps]
    kinds = [step["forwards"][0]["kind"] for step in firsts]
    equal("nfe_full", kinds.count("refresh"), expected["nfe_full"])
    equal("nfe_cached", kinds.count("denoise"), expected["nfe_cached"])
    queries = batch.queries()
    equal("query_tokens", [tokens // len(batch.rows) for tokens in queries], expected["query_tokens"])
    equal("tokens_processed", sum(queries), expected["tokens_processed"])
    equal("nocache_ids", run(case, decoder, block, device=device).ids(), expected["nocache_ids"])
