"""Golden cases of dllm's samplers on its converted models: mdlm (full attention), bd3lm (block-causal) on three grids.

Compared: ids, every step, forwards. Official bd3lm runs the whole prefix again before every block: its first prefix
call is the prefill, each later one stands for the store of the block before, and the last block is never stored. A
batch of bd3lm goes on until every row has an EOS; here a row ends behind the block that holds its own, so rows are
compared up to there.
"""

from __future__ import annotations

import torch

from dlmbench.backbone import load_checkpoint
from dlmbench.backbone.descriptor import Descriptor, Told
from dlmbench.backbone.network import Network
from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.static import Static, StaticConfig, linear_quota
from dlmbench.engine import Engine, Generation, Request
from dlmbench.verify.cases import Case, Mismatch, equal
from dlmbench.verify.rows import FIELDS, compare, prompts, row_forwards, run

PARAMS = {
    "steps", "steps_per_block", "gen_length", "block_length", "temperature", "remasking", "cfg_scale", "mask_id",
    "eos_id", "pad_id", "suppress_tokens", "begin_suppress_tokens",
}  # fmt: skip
EXPECTED = {"ids", "nfe", "forwards", "row_forwards", "grid_offset", "stopped", "steps"}
GRID = {"a2d_bd3lm": "prompt", "a2d_bd3lm_v0": "split", "a2d_bd3lm_grid0": "cut"}


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    if case.raw["method"] == "a2d_quota":
        _check_quota(case)
        return
    case.know(FIELDS, PARAMS, EXPECTED)
    if case.params.get("remasking", "low_confidence") != "low_confidence" or case.params["temperature"]:
        raise Mismatch("only greedy decoding by confidence is known for this method")
    if case.raw["method"] == "a2d_mdlm":
        _check_full(case, device)
    else:
        _check_blocks(case, device)


def _check_full(case: Case, device: str) -> None:
    params = case.params
    blocks = -(-params["gen_length"] // params["block_length"])
    decoder = Static(StaticConfig(steps=-(-params["steps"] // blocks), schedule="linear"))
    sampling = Sampling(
        confidence="clean", banned=tuple(params.get("suppress_tokens") or ()),
        last=tuple(params.get("begin_suppress_tokens") or ()),
    )  # fmt: skip
    batch = run(
        case, decoder, params["block_length"], guidance=params.get("cfg_scale", 0.0), sampling=sampling, device=device
    )
    compare(case, batch)
    equal("row_forwards", row_forwards(batch), case.expected.get("row_forwards", row_forwards(batch)))


def _check_blocks(case: Case, device: str) -> None:
    """Rows with separate stores, as the official calls are, then with fused ones: the same ids and steps."""
    expected, (ids, _) = case.expected, prompts(case)
    if case.params.get("cfg_scale"):
        raise Mismatch("guidance of block-causal models is not known")
    rows = _generate(case, ids, "separate", device)
    _compare_rows(case, ids, rows)
    _compare_rows(case, ids, _generate(case, ids, "fused", device))
    denoise = max(_calls(row, "denoise") for row in rows)
    blocks = max(_calls(row, "store") for row in rows)
    if case.raw["method"] == "a2d_bd3lm_grid0":
        equal("nfe", denoise, expected["nfe"])
        return
    equal("forwards", {"prefix": blocks, "denoise": denoise}, expected["forwards"])
    equal("nfe", blocks + denoise, expected["nfe"])
    if "grid_offset" in expected:
        offsets = [-len(row) % case.params["block_length"] for row in ids]
        equal("grid_offset", offsets if isinstance(expected["grid_offset"], list) else offsets[0],
              expected["grid_offset"])  # fmt: skip


def _compare_rows(case: Case, prompts: list[list[int]], rows: list[Generation]) -> None:
    expected, single = case.expected, len(rows) == 1
    answers = [expected["ids"]] if single else expected["ids"]
    steps = [[(step["block"], step["positions"], step["tokens"]) for step in _of_row(expected["steps"], i, single)]
             for i in range(len(rows))]  # fmt: skip
    for i, (prompt, row, answer) in enumerate(zip(prompts, rows, answers)):
        equal(f"ids of row {i}", row.raw_ids, answer[: len(row.raw_ids)])
        if row.stop_reason != "eos":
            equal(f"length of row {i}", len(row.raw_ids), len(answer))
        first = len(prompt) // case.params["block_length"] if GRID[case.raw["method"]] == "prompt" else 0
        ours = [(step["block"] - first, step["positions"], step["tokens"]) for step in row.trace or ()]
        theirs = steps[i] if row.stop_reason != "eos" else steps[i][: len(ours)]
        equal(f"steps of row {i}", ours, theirs)
    ends = [row.stop_reason == "eos" for row in rows]
    if "stopped" in expected:
        equal("stopped", all(ends), expected["stopped"])


def _of_row(steps: list[dict], row: int, single: bool) -> list[dict]:
    """The official steps of one row, without those in which it waited for others."""
    if single:
        return steps
    own = [{**step, "positions": step["positions"][row], "tokens": step["tokens"][row]} for step in steps]
    return [step for step in own if step["positions"]]


def _calls(row: Generation, kind: str) -> int:
    return int(row.counts["target"].get(kind, {"calls": 0})["calls"])


def _generate(case: Case, ids: list[list[int]], store: str, device: str) -> list[Generation]:
    params, grid = case.params, GRID[case.raw["method"]]
    ends = (params["eos_id"],) if params.get("eos_id") is not None else ()
    flags = Descriptor(attention="block_causal", mask_id=params["mask_id"], shift=0, grid=grid, end_ids=ends)
    model = load_checkpoint(case.weights(), device, told=Told(flags))
    network = Network("target", model, params["block_length"], store)
    decoder = Static(StaticConfig(steps=_steps_per_block(case, ids), schedule="linear"))
    engine = Engine({"target": network}, decoder, sampling=Sampling(confidence="clean"), batch_size=len(ids))
    requests = [Request(str(i), tuple(row), params["gen_length"]) for i, row in enumerate(ids)]
    return engine.generate(requests, trace=True)


def _steps_per_block(case: Case, ids: list[list[int]]) -> int:
    """The total, divided among the blocks and rounded up; on the grid from 0 among those that hold masks."""
    params = case.params
    if params.get("steps_per_block"):
        return params["steps_per_block"]
    block = params["block_length"]
    blocks = -(-params["gen_length"] // block)
    if case.raw["method"] == "a2d_bd3lm_grid0":
        (prompt,) = ids
        blocks = -(-(len(prompt) + params["gen_length"]) // block) - len(prompt) // block
    return -(-params["steps"] // blocks)


def _check_quota(case: Case) -> None:
    n, steps = case.raw["n"], case.raw["steps"]
    due = linear_quota(n, steps, torch.device("cpu"))[n].tolist()
    equal("quota", [k for k in due if k], case.raw["quota"])
