"""Golden cases of LLaDA2.0's decoder, and of LLaDA2.1's with token editing in two implementations.

Compared: all ids up to the end of the last block, what a release returns, every step with what it filled and what it
rewrote, and forwards by kind. The official code has no cache and makes no store; SGLang's loop makes one after every
block, which changes nothing, and one more forward where its limit ended the block: both are added to ours here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby

from dlmbench.backbone import load_checkpoint
from dlmbench.backbone.network import Network
from dlmbench.decoders.base import Decoder
from dlmbench.decoders.edit import Edit, EditConfig
from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine import Engine, Generation, Request
from dlmbench.engine.request import TracedStep
from dlmbench.verify.cases import Case, Fixture, Mismatch, equal, traced

FIELDS = {"id", "family", "weights", "method", "params", "source", "note", "prompt_ids", "margins", "expected"}
USUAL = {"block_length", "gen_length", "threshold", "mask_id"}
PARAMS = {
    "llada2_generate": USUAL | {"steps", "minimal_topk", "eos_early_stop", "eos_id", "temperature"},
    "llada2_edit": USUAL
    | {"editing_threshold", "max_post_steps", "num_to_transfer", "eos_early_stop", "eos_id", "temperature"},
    "llada2_joint_threshold": USUAL | {"edit_threshold", "max_post_edit_steps", "penalty_lambda"},
}
EXPECTED = {"ids", "returned_ids", "nfe", "forwards", "total_length", "stopped", "steps"}


def check(case: Case, device: str = "cpu") -> None:
    """Run a case with fused and with separate stores. Raises Mismatch."""
    case.know(FIELDS, PARAMS[case.raw["method"]], EXPECTED)
    for store in ("fused", "separate"):
        _compare(case, _run(case, store, device))


def _run(case: Case, store: str, device: str) -> Generation:
    params = case.params
    model = load_checkpoint(case.weights(), device, told=case.told("block_causal"))
    model.config = replace(model.config, eos_ids=(params["eos_id"],) if "eos_id" in params else ())
    network = Network("target", model, params["block_length"], store)
    engine = Engine(
        {"target": network}, _decoder(case.raw["method"], params), sampling=Sampling(params.get("temperature", 0.0))
    )
    request = Request(case.raw["id"], tuple(case.raw["prompt_ids"]), params["gen_length"])
    return engine.generate([request], trace=True)[0]


def _decoder(method: str, params: Mapping[str, float]) -> Decoder:
    threshold = params["threshold"]
    if method == "llada2_generate":
        steps = min(params["steps"], params["gen_length"] // params["minimal_topk"])
        return Threshold(ThresholdConfig(tau=threshold, steps=int(steps), early_eos=bool(params["eos_early_stop"])))
    if method == "llada2_edit":
        return Edit(
            EditConfig(
                threshold=threshold, edit_threshold=params["editing_threshold"],
                max_post_steps=int(params["max_post_steps"]), least=int(params["num_to_transfer"]),
                stop="eos" if params["eos_early_stop"] else "budget",
            )
        )  # fmt: skip
    return Edit(
        EditConfig(
            threshold=threshold, edit_threshold=params["edit_threshold"],
            max_post_steps=int(params["max_post_edit_steps"]), penalty=params["penalty_lambda"], stop="budget",
        )
    )  # fmt: skip


def _compare(case: Case, run: Generation) -> None:
    expected, editing = case.expected, case.raw["method"] != "llada2_generate"
    equal("ids", run.raw_ids, expected["ids"])
    if "returned_ids" in expected:
        equal("returned_ids", run.ids, expected["returned_ids"])
        equal("stopped", run.stop_reason == "eos", expected["stopped"])
    room = len(case.raw["prompt_ids"]) + case.params["gen_length"]
    equal(
        "total_length", -(-room // case.params["block_length"]) * case.params["block_length"], expected["total_length"]
    )
    steps = [_step(step, editing) for step in traced(run)]
    if case.raw["method"] == "llada2_joint_threshold":
        steps = _with_stores(steps)
    equal("steps", steps, expected["steps"])
    equal("nfe", len(steps), expected["nfe"])
    calls = {kind: n["calls"] for kind, n in run.counts["target"].items()}
    for kind, number in expected.get("forwards", {}).items():
        equal(f"{kind} forwards", calls.get(kind, 0), number)
    if sum(calls.get(kind, 0) for kind in ("denoise", "edit")) != len(traced(run)):
        raise Mismatch("forwards were counted that no step made")


def _step(step: TracedStep, editing: bool) -> dict:
    shown: Fixture = {"block": step["block"], "positions": step["positions"], "tokens": step["tokens"]}
    if not editing:
        return shown
    rewritten = step.get("replaced") or {"positions": [], "tokens": []}
    return shown | {"edit_positions": rewritten["positions"], "edit_tokens": rewritten["tokens"]}


def _with_stores(steps: list[dict]) -> list[dict]:
    """SGLang's steps: behind every block a store, and before it a forward that goes beyond the limit where the last one
    of ours still changed something."""
    shown = []
    for block, own in groupby(steps, key=lambda step: step["block"]):
        mine = list(own)
        changed = mine[-1]["positions"] or mine[-1]["edit_positions"]
        empty = {"block": block, "positions": [], "tokens": [], "edit_positions": [], "edit_tokens": []}
        shown += mine + [empty] * (2 if changed else 1)
    return shown
