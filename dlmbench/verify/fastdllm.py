"""Golden cases of Fast-dLLM: threshold, factor and quota rules under no, prefix and dual cache, on LLaDA and Dream.

Compared: ids, every step, calls on the whole sequence and on windows, tokens processed (a row that waits for the batch
is carried along, as the official loop does), forced steps, the steps in which the released factor rule differs from the
paper's, the ids of the same rule without a cache, and the calls of the first release, which spent one more on every
block that its full forward had finished.
"""

from __future__ import annotations

from dlmbench.backbone.bidirectional import CachePolicy
from dlmbench.decoders.base import Decoder
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine.request import TracedStep
from dlmbench.verify.cases import Case, Mismatch, equal
from dlmbench.verify.rows import FIELDS, CaseRun, blocks_and_steps, compare, run

PARAMS = {
    "steps", "gen_length", "block_length", "threshold", "factor", "cache", "temperature", "remasking", "mask_id",
    "alg", "eps",
}  # fmt: skip
EXPECTED = {
    "ids", "nfe", "nfe_full", "nfe_cached", "tokens_processed", "forced_steps", "last_rank_steps", "nocache_ids",
    "first_release", "steps",
}  # fmt: skip


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    case.know(FIELDS, PARAMS, EXPECTED)
    params, expected = case.params, case.expected
    if params["temperature"] or params.get("remasking", "low_confidence") != "low_confidence":
        raise Mismatch("only greedy decoding by confidence is known for this method")
    block = params["block_length"] or params["gen_length"]
    decoder = _dream(params, block) if case.raw["method"] == "fastdllm_dream" else _llada(params, block)
    batch = run(case, decoder, block, policy=CachePolicy(params["cache"]), device=device)
    compare(case, batch)
    compare_work(batch, expected)
    if expected.get("forced_steps") is not None:  # counted for the plain threshold only
        equal("forced_steps", sum(row.fallbacks for row in batch.rows), expected["forced_steps"])
    if "last_rank_steps" in expected:
        extra = [i for i, (step,) in enumerate(batch.steps) if step and step["extra"]["last_rank"]]
        equal("last_rank_steps", extra, expected["last_rank_steps"])
    if "nocache_ids" in expected:
        equal("nocache_ids", run(case, decoder, block, device=device).ids(), expected["nocache_ids"])
    if "first_release" in expected:
        _first_release(batch, params["cache"] != "none", expected["first_release"])


def compare_work(batch: CaseRun, expected: dict) -> None:
    """Calls on whole sequences and on windows, and the tokens of both. Raises Mismatch."""
    kinds = [_kind(call) for call in batch.steps]
    equal("nfe_full", kinds.count("refresh"), expected["nfe_full"])
    equal("nfe_cached", kinds.count("denoise"), expected["nfe_cached"])
    equal("tokens_processed", sum(batch.queries()), expected["tokens_processed"])


def _llada(params: dict, block: int) -> Decoder:
    if params["threshold"] is not None:
        return Threshold(ThresholdConfig(tau=params["threshold"]))
    if params["factor"] is not None:
        return Threshold(ThresholdConfig(rule="factor", factor=params["factor"], factor_rule="code"))
    return Static(StaticConfig(steps=blocks_and_steps(params, block), schedule="quota"))


def _dream(params: dict, block: int) -> Decoder:
    match params["alg"], params["cache"]:
        case "confidence_threshold", "none":
            return Threshold(ThresholdConfig(tau=params["threshold"], rule="planned", steps=params["steps"]))
        case "confidence_threshold", _:
            return Threshold(ThresholdConfig(tau=params["threshold"]))
        case "entropy", "prefix" | "dual":
            steps = blocks_and_steps(params, block)
            return Static(StaticConfig(steps=steps, schedule="dream-block", order="entropy", eps=params["eps"]))
    raise Mismatch(f"alg {params['alg']!r} with cache {params['cache']!r} is not known")


def _kind(call: list[TracedStep | None]) -> str:
    (kind,) = {forward["kind"] for step in call if step for forward in step["forwards"]}
    return kind


def _first_release(batch: CaseRun, cached: bool, expected: dict) -> None:
    """With a cache, one more call for every block that ended with its full forward; the ids are the same."""
    for name in set(expected) - {"nfe", "same_ids"}:
        raise Mismatch(f"unknown field expected.first_release.{name}")
    kinds = [_kind(call) for call in batch.steps]
    alone = sum(kind == "refresh" and following == "refresh" for kind, following in zip(kinds, [*kinds[1:], "refresh"]))
    equal("first_release.nfe", len(kinds) + alone * cached, expected["nfe"])
    equal("first_release.same_ids", True, expected["same_ids"])
