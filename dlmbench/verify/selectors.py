"""Golden cases of selectors: rules that choose positions, over full forwards of LLaDA or Dream or with Fast-dLLM's
caches.

Compared: ids, every step, calls, row-forwards and tokens (a row that waits for the batch is carried along, as the
official loops do), steps in which nothing passed, and what the plain threshold makes of the same case.
"""

from __future__ import annotations

from dataclasses import replace

from dlmbench.backbone.bidirectional import CachePolicy
from dlmbench.backbone.configuration import read_config
from dlmbench.decoders.base import Decoder
from dlmbench.decoders.credit import Credit, CreditConfig
from dlmbench.decoders.entropy import Entropy, EntropyConfig
from dlmbench.decoders.frechet import Frechet, FrechetConfig
from dlmbench.decoders.hierarchy import Hierarchy, HierarchyConfig
from dlmbench.decoders.pcsampler import PCSampler, PCSamplerConfig
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.verify.cases import Case, Mismatch, equal, traced
from dlmbench.verify.fastdllm import compare_work
from dlmbench.verify.rows import FIELDS, CaseRun, blocks_and_steps, compare, run

PARAMS = {"gen_length", "block_length", "temperature", "mask_id"}
EXPECTED = {"ids", "nfe", "steps", "row_forwards", "forced_steps"}
MORE = {  # method -> its own parameters, and what it expects beyond the usual
    "hierarchy": ({"threshold", "low_threshold", "early_stop"}, {"threshold_nfe"}),
    "credit": ({"threshold", "credit_alpha", "boost_gamma", "decay_beta"}, {"nocredit_ids", "nocredit_nfe"}),
    "frechet": ({"frechet_margin", "cache", "steps", "remasking"}, {"nfe_full", "nfe_cached", "tokens_processed"}),
    "entropy_gate": ({"entropy_threshold"}, set()),
    "pcsampler": ({"lambd", "alpha", "steps", "cfg_scale", "frequency"}, set()),
}


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    method, params, expected = case.raw["method"], case.params, case.expected
    more_params, more_expected = MORE[method]
    case.know(FIELDS, PARAMS | more_params, EXPECTED | more_expected)
    if (
        params["temperature"]
        or params.get("cfg_scale")
        or params.get("remasking", "low_confidence") != "low_confidence"
    ):
        raise Mismatch("only greedy decoding by confidence is known for this method")
    batch = _run(case, _decoder(case, method), device)
    compare(case, batch)
    if params.get("early_stop"):  # counted of the run that goes on: those of the blocks behind come on top
        equal("forced_steps", True, _forced(batch) >= expected["forced_steps"])
    elif "forced_steps" in expected:
        equal("forced_steps", _forced(batch), expected["forced_steps"])
    if "row_forwards" in expected:
        equal("row_forwards", len(batch.steps) * len(batch.rows), expected["row_forwards"])
    if "nfe_full" in expected:
        compare_work(batch, expected)
    if "threshold" in params:
        plain = _run(case, Threshold(ThresholdConfig(params["threshold"])), device)
        equal("nfe of threshold", len(plain.steps), expected.get("threshold_nfe", expected.get("nocredit_nfe")))
        equal("nocredit_ids", plain.ids(), expected.get("nocredit_ids", plain.ids()))


def _decoder(case: Case, method: str) -> Decoder:
    params = case.params
    match method:
        case "hierarchy":
            return Hierarchy(HierarchyConfig(params["threshold"], params["low_threshold"]))
        case "credit":
            return Credit(
                CreditConfig(params["threshold"], params["credit_alpha"], params["decay_beta"], params["boost_gamma"])
            )
        case "frechet":
            return Frechet(FrechetConfig(params["frechet_margin"]))
        case "pcsampler":
            steps = blocks_and_steps(params, params["block_length"])
            table = str(case.weights() / params["frequency"])
            return PCSampler(PCSamplerConfig(1, steps, params["lambd"], params["alpha"], table))
    return Entropy(EntropyConfig(params["entropy_threshold"], "gate"))


def _run(case: Case, decoder: Decoder, device: str) -> CaseRun:
    block, policy = case.params["block_length"], CachePolicy(case.params.get("cache", "none"))
    batch = run(case, decoder, block, policy=policy, device=device)
    return _stopped(case, batch, block) if case.params.get("early_stop") else batch


def _forced(batch: CaseRun) -> int:
    return sum(row.fallbacks for row in batch.rows)


def _stopped(case: Case, batch: CaseRun, block: int) -> CaseRun:
    """What dInfer makes of the run: a row ends with the block that holds an EOS, and the rest is filled with it."""
    (row,), eos = batch.rows, read_config(case.weights(), case.told("full"))[0].eos_ids[0]
    ids = row.raw_ids
    blocks = ids.index(eos) // block + 1 if eos in ids else -(-len(ids) // block)
    numbers = sorted({step["block"] for step in traced(row)})[:blocks]
    trace = [step for step in traced(row) if step["block"] in numbers]
    filled = ids[: blocks * block] + [eos] * (len(ids) - blocks * block)
    return replace(batch, rows=[replace(row, raw_ids=filled, trace=trace)])
