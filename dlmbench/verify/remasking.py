"""Golden cases of the decoders that take tokens back: the ReMDM loop, running confidence remasking, Saber.

Compared: ids, every step as net changes (positions filled, positions opened), calls; of rcr its schedule and the
positions of finished blocks that were opened again; of Saber the steps that the release reports.
"""

from __future__ import annotations

from dlmbench.decoders.base import Decoder
from dlmbench.decoders.rcr import RCR, RCRConfig
from dlmbench.decoders.remdm_loop import RemdmLoop, RemdmLoopConfig
from dlmbench.decoders.saber import Saber, SaberConfig
from dlmbench.verify.cases import Case, Mismatch, equal, traced
from dlmbench.verify.rows import FIELDS, CaseRun, prompts, run

COMMON = {"gen_length", "temperature", "mask_id"}
PARAMS = {
    "remdm_loop": {"init_unmask_ratio", "unmask_k", "loop_steps", "cfg_scale"},
    "rcr": {"block_length", "steps", "mode", "conf_alg", "rcr"},
    "saber": {"block_length", "n"},
}
EXPECTED = {"remdm_loop": set(), "rcr": {"quota", "revisited"}, "saber": {"reported_steps"}}
ORDERS = {"llada": "confidence", "origin": "confidence", "entropy": "entropy", "topk_margin": "margin"}


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    method, params, expected = case.raw["method"], case.params, case.expected
    case.know(FIELDS, COMMON | PARAMS[method], {"ids", "nfe", "steps"} | EXPECTED[method])
    if params["temperature"]:
        raise Mismatch("only greedy decoding is known for this method")
    block = params["block_length" if "block_length" in params else "gen_length"]
    batch = run(case, _decoder(case, block), block, guidance=params.get("cfg_scale", 0.0), device=device)
    equal("ids", batch.ids(), expected["ids"])
    equal("nfe", len(batch.steps), expected["nfe"])
    equal("steps", _net_changes(batch), expected["steps"])
    if method == "rcr":
        _check_rcr(case, batch, block)
    if method == "saber":  # Dream's function does not count the last forward
        equal("reported_steps", len(batch.steps) - (case.raw["family"] == "dream"), expected["reported_steps"])


def _decoder(case: Case, block: int) -> Decoder:
    params = case.params
    match case.raw["method"]:
        case "remdm_loop":
            return RemdmLoop(RemdmLoopConfig(params["init_unmask_ratio"], params["unmask_k"], params["loop_steps"]))
        case "rcr":
            steps = max(params["steps"] // (params["gen_length"] // block), 1)
            schedule = dict(schedule=params["mode"])
            if params["mode"].startswith("pow"):
                schedule = dict(schedule="pow", exponent=float(params["mode"].removeprefix("pow")))
            return RCR(RCRConfig(steps, order=ORDERS[params["conf_alg"]], remask=params["rcr"], **schedule))
    if case.raw["family"] == "dream":
        equal("n", params["n"], 2)  # a literal of that file
        equal("block_length", block, params["gen_length"])
    return Saber(SaberConfig(params["n"], "token" if case.raw["family"] == "dream" else "change"))


def _net_changes(batch: CaseRun) -> list[dict]:
    """{"positions", "tokens", "remasked"} of every call; lists of rows for a batch."""
    official = batch.official_steps()
    for call, shown in zip(batch.steps, official):
        opened = [[p + pad for p in step["remasked"]] if step else [] for step, pad in zip(call, batch.pads)]
        shown["remasked"] = opened[0] if len(batch.rows) == 1 else opened
    return official


def _check_rcr(case: Case, batch: CaseRun, block: int) -> None:
    """Net fills of every step of a block, and what was opened left of it."""
    (trace,), ((prompt,), _) = [traced(row) for row in batch.rows], prompts(case)
    net = [len(step["positions"]) - len(step["remasked"]) for step in trace]
    quota = case.expected["quota"]
    blocks = case.params["gen_length"] // block
    equal("quota", net, quota * blocks)
    revisited = set()
    for number, step in enumerate(trace):
        start = len(prompt) + number // len(quota) * block
        revisited |= {position for position in step["remasked"] if position < start}
    equal("revisited", sorted(revisited), case.expected["revisited"])
