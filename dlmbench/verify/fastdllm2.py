"""Golden cases of Fast-dLLM v2: `batch_sample` (a row ends behind the block with a stop token, anchors are not looked
at) and the stop rule of the model's own `generate`.

Compared: ids, every forward with what it wrote, forwards by kind, and the ids of the same rule without the block cache.
The official loop counts blocks from the one that holds the prompt's end and writes one anchor behind the last; here the
answer's budget ends with this anchor, whose block is opened and not looked at further. Padding behind a stop token is
the official loop's alone.
"""

from __future__ import annotations

from dlmbench.backbone import load_checkpoint
from dlmbench.backbone.anchored import AnchoredNetwork
from dlmbench.backbone.descriptor import Descriptor, Told
from dlmbench.decoders.fastdllm2 import FastDLLM2, FastDLLM2Config
from dlmbench.engine import Engine, Generation, Request
from dlmbench.verify.cases import Case, Fixture, Mismatch, equal, traced
from dlmbench.verify.rows import FIELDS

PARAMS = {
    "block_length", "sub_block_length", "max_new_tokens", "threshold", "use_block_cache", "temperature", "mask_id",
    "stop_id", "pad_id",
}  # fmt: skip
EXPECTED = {"ids", "nfe", "forwards", "stopped", "steps", "returned_ids", "nocache_ids"}


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    case.know(FIELDS, PARAMS, EXPECTED)
    params, expected = case.params, case.expected
    if params["temperature"]:
        raise Mismatch("only greedy decoding is known for this method")
    run = _run(case, params["use_block_cache"], device)
    equal("ids", _ids(case, run), expected["ids"])
    steps = _official(case, run)
    equal("steps", steps, expected["steps"])
    kinds = [step["kind"] for step in steps]
    equal("forwards", {kind: kinds.count(kind) for kind in expected["forwards"]}, expected["forwards"])
    equal("nfe", len(kinds) - kinds.count("prefill"), expected["nfe"])
    equal("stopped", params["stop_id"] in expected["ids"], expected["stopped"])
    if "nocache_ids" in expected:
        equal("nocache_ids", _ids(case, _run(case, False, device)), expected["nocache_ids"])


def _run(case: Case, block_cache: bool, device: str) -> Generation:
    params, prompt = case.params, case.raw["prompt_ids"]
    flags = Descriptor(mask_id=params["mask_id"], end_ids=(params["stop_id"],))
    model = load_checkpoint(case.weights(), device, told=Told(flags))
    stop = "early" if case.raw["method"] == "fastdllm2_stop_early" else "block"
    config = FastDLLM2Config(params["threshold"], params["sub_block_length"], block_cache, stop)
    engine = Engine({"target": AnchoredNetwork("target", model, params["block_length"])}, FastDLLM2(config))
    request = Request(case.raw["id"], tuple(prompt), _answer(case) + 1)
    return engine.generate([request], trace=True)[0]


def _answer(case: Case) -> int:
    """Tokens from the prompt's end to the end of the last official block."""
    block, prompt = case.params["block_length"], len(case.raw["prompt_ids"])
    return (prompt // block + case.params["max_new_tokens"] // block) * block - prompt


def _ids(case: Case, run: Generation) -> list[int]:
    """The answer as the official loop leaves it: with its last anchor, or with padding behind a stop token."""
    params = case.params
    ids, block, prompt = run.raw_ids, params["block_length"], len(case.raw["prompt_ids"])
    last = traced(run)[-1]["block"]
    if last * block - prompt >= _answer(case):  # the block of the last anchor
        return ids[: _answer(case) + 1]
    if case.raw["method"] == "fastdllm2_stop_early":
        return ids if traced(run)[-1]["forwards"] else ids[: last * block - prompt + 1]  # its block is not opened
    end = ids.index(params["stop_id"]) + 1
    return ids[:end] + [params["pad_id"]] * (len(ids) - end)


def _official(case: Case, run: Generation) -> list[Fixture]:
    """Official forwards: anchors belong to the forward that predicted them, not to the one that saw them first."""
    params, prompt = case.params, len(case.raw["prompt_ids"])
    block, steps = params["block_length"], list[Fixture]()
    if prompt >= block:
        steps.append({"kind": "prefill", "block": prompt // block - 1, "positions": [], "tokens": []})
    for step in traced(run):
        positions, tokens = step["positions"], step["tokens"]
        if positions and positions[0] == step["block"] * block and positions[0] >= prompt:
            steps[-1]["positions"], steps[-1]["tokens"] = positions[:1], tokens[:1]
            positions, tokens = positions[1:], tokens[1:]
        if step["block"] * block - prompt >= _answer(case):
            break
        for forward in step["forwards"]:
            whole = "block" if forward["query_tokens"] == block else "sub_block"
            kind = "store" if forward["kind"] == "store" else whole
            steps.append({"kind": kind, "block": step["block"], "positions": positions, "tokens": tokens})
    return steps
