"""Golden cases of FreeCache on LLaDA and Dream, all with ``freeze=stale``.

Compared: ids, every step (an EOS fill included), calls, query tokens of every forward, and the sampler without cache.
On one layer ``freeze=refresh`` must give the ids without cache, and is tried as well.
"""

from __future__ import annotations

from dataclasses import replace

from dlmbench.backbone.bidirectional import CachePolicy
from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.verify.cases import Case, Mismatch, equal
from dlmbench.verify.dream import ORDERS
from dlmbench.verify.rows import FIELDS, CaseRun, blocks_and_steps, compare, run

PARAMS = {
    "gen_length", "block_size", "block_length", "steps", "alg", "temperature", "eps", "mask_token_id", "cfg_scale",
    "remasking", "early_stop", "eos_token_id",
}  # fmt: skip
EXPECTED = {"ids", "nfe", "query_tokens_per_forward", "steps", "nocache_ids", "nocache_nfe"}


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    case.know(FIELDS, PARAMS, EXPECTED)
    params, expected = case.params, case.expected
    block = params.get("block_length") or params["block_size"]
    if params["temperature"] or params.get("cfg_scale") or params.get("remasking") not in (None, "low_confidence"):
        raise Mismatch("only greedy decoding by confidence without guidance is known for this method")
    config = StaticConfig(steps=blocks_and_steps(params, block), schedule="quota")
    if case.raw["family"] == "dream":
        config = replace(config, schedule="dream", order=ORDERS[params["alg"]], eps=params["eps"])

    def decode(policy: CachePolicy, early_stop: bool = False) -> CaseRun:
        return run(
            case, Static(config), block, policy=policy, sampling=Sampling(),
            eos_id=params.get("eos_token_id"), fill_after_eos=early_stop, device=device,
        )  # fmt: skip

    batch = decode(CachePolicy("freecache"), params.get("early_stop", False))
    compare(case, batch)
    equal("query_tokens_per_forward", batch.queries(), expected["query_tokens_per_forward"])
    if "nocache_ids" in expected:
        plain = decode(CachePolicy())
        equal("nocache_ids", plain.ids(), expected["nocache_ids"])
        equal("nocache_nfe", len(plain.steps), expected["nocache_nfe"])
        if case.raw["id"].endswith("1layer"):
            equal("ids with freeze=refresh", decode(CachePolicy("freecache", freeze="refresh")).ids(), plain.ids())
