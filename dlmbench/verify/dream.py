"""Golden cases of Dream's diffusion_generate.

Compared: ids, every step with empty ones, calls, row-forwards and the number of commits a step. The block is the whole
answer.
"""

from __future__ import annotations

from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.verify.cases import Case, equal, traced
from dlmbench.verify.rows import FIELDS, compare, row_forwards, run

PARAMS = {
    "steps", "gen_length", "temperature", "top_p", "top_k", "alg", "alg_temp", "eps", "mask_id", "torch_seed",
}  # fmt: skip
ORDERS = {"entropy": "entropy", "maskgit_plus": "confidence", "topk_margin": "margin", "origin": "origin"}


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    case.know(FIELDS, PARAMS, {"ids", "nfe", "row_forwards", "commits_per_step", "steps"})
    params = case.params
    config = StaticConfig(
        steps=params["steps"], schedule="dream", order=ORDERS[params["alg"]], alg_temp=params["alg_temp"] or 0.0,
        eps=params["eps"],
    )  # fmt: skip
    sampling = Sampling(params["temperature"], params["top_k"] or 0, params["top_p"] or 1.0, "filtered")
    batch = run(case, Static(config), params["gen_length"], sampling=sampling, device=device)
    compare(case, batch)
    equal("row_forwards", row_forwards(batch), case.expected["row_forwards"])
    commits = [len(step["positions"]) for step in traced(batch.rows[0])]
    equal("commits_per_step", commits, case.expected["commits_per_step"])
