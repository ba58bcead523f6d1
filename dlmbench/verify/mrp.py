"""Golden cases of MRP and of its two baselines.

Compared: all ids up to the end of the last decoded block, every step (drafts, acceptance, bonus, commits, vetoes),
forwards of backbone and module by kind, the sums that the area's README defines, and the length. The official loop
spends separate store forwards and never shrinks a pack, so cases run with ``store=separate`` and ``shrink=false``; ids
and steps must be the same with fused stores, with shrunk packs, and with several rows at once.

Batch cases hold the counts of a batch that accepts the minimum over its rows; only ids per row are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open

from dlmbench.backbone import load_checkpoint
from dlmbench.backbone.attention import CachedAttention, QueryGroup, block_causal
from dlmbench.backbone.cache import KVCache
from dlmbench.backbone.network import Network
from dlmbench.decoders.mrp import MRP, MRPConfig
from dlmbench.decoders.predict import Sampling
from dlmbench.engine import Engine, Generation, Request
from dlmbench.engine.request import TracedStep
from dlmbench.heads.mrp import MRPModule, load_module
from dlmbench.heads.mrp_network import MRPHead
from dlmbench.verify.cases import Case, Mismatch, equal, traced

FIELDS = {"id", "family", "weights", "method", "params", "source", "prompt_ids", "logit_noise_robust_std", "expected"}
PARAMS = {
    "mask_id", "temperature", "top_k", "top_p", "block_length", "gen_length", "denoising_steps", "confidence",
    "remasking_strategy", "confidence_threshold", "mrp_steps", "mrp_logit_mix_mode", "mrp_logit_sum_scale",
    "mrp_verify_mode", "residual_delta", "mrp_prefix_cache", "remask_input", "stop_token_ids",
    "mrp_num_transfer_per_iter", "mrp_remasking_strategy",
}  # fmt: skip
EXPECTED = {
    "ids", "nfe", "forwards", "head_forwards", "drafter_nfe", "total_length", "steps", "spec_rounds",
    "drafts_proposed", "drafts_accepted", "bonus_tokens", "vetoed",
}  # fmt: skip
MODES = {  # method -> (mode of ours, official verify mode that goes with it)
    "mrp_static_baseline": ("direct", "none"),
    "mrp_dynamic_baseline": ("direct", "none"),
    "mrp_speculative": ("speculative", "spec"),
    "mrp_direct": ("direct", "none"),
    "mrp_residual_remask": ("residual_remask", "residual_remask"),
    "mrp_tau_remask": ("remask", "none"),
}
COMMITS = {"low_confidence_static": "static", "low_confidence_dynamic": "dynamic"}
TOLERANCE = 2e-4  # logits have a standard deviation of about 5


def check(case: Case, device: str = "cpu") -> None:
    """Run a case with separate and with fused stores. Raises Mismatch."""
    case.know(FIELDS, PARAMS, EXPECTED)
    if isinstance(case.raw["prompt_ids"][0], list):
        _check_batch(case, device)
        return
    config = _config(case)
    official = _run(case, config, [case.raw["prompt_ids"]], "separate", device)[0]
    _compare(case, official)
    _compare_counts(case, official)
    for other in (config, replace(config, shrink=True)):
        fused = _run(case, other, [case.raw["prompt_ids"]] * 2, "fused", device)
        for run in fused:
            _compare(case, run)
        equal("rounds with fused stores", _inside(fused[0]), _inside(official))


def _check_batch(case: Case, device: str) -> None:
    expected = case.expected
    for store in ("separate", "fused"):
        runs = _run(case, _config(case), case.raw["prompt_ids"], store, device)
        for row, (run, ids) in enumerate(zip(runs, expected["ids"], strict=True)):
            equal(f"ids of row {row} ({store} stores)", run.raw_ids, ids)
    equal("total_length", _total(case), expected["total_length"])


def _config(case: Case) -> MRPConfig:
    params, method = case.params, case.raw["method"]
    mode, verify = MODES[method]
    equal("params.mrp_verify_mode", params.get("mrp_verify_mode", verify), verify)
    equal("params.confidence", params.get("confidence", "full_softmax"), "full_softmax")
    equal("params.mrp_num_transfer_per_iter", params.get("mrp_num_transfer_per_iter", 1), 1)
    one_at_a_time = "low_confidence_static"
    equal("params.mrp_remasking_strategy", params.get("mrp_remasking_strategy", one_at_a_time), one_at_a_time)
    dynamic = mode.endswith("remask") or method == "mrp_dynamic_baseline"
    strategy = params.get("remasking_strategy", "low_confidence_dynamic" if dynamic else "low_confidence_static")
    if strategy not in COMMITS:
        raise Mismatch(f"unknown remasking_strategy {strategy!r}")
    baseline = method in ("mrp_static_baseline", "mrp_dynamic_baseline")
    if baseline:
        equal("params.mrp_steps", params.get("mrp_steps", 0), 0)
    return MRPConfig(
        mode=mode,
        K=0 if baseline else params["mrp_steps"],
        tau=params.get("confidence_threshold", 0.85),
        delta=params.get("residual_delta", 1.0),
        commit=COMMITS[strategy],
        steps=params["denoising_steps"] if mode == "direct" else 0,  # the other modes know no schedule
        mrp_prefix_cache=params.get("mrp_prefix_cache", mode == "direct"),
        remask_input=params.get("remask_input", "revealed"),
        mix=params.get("mrp_logit_mix_mode", "logits_sum"),
        sum_scale=params.get("mrp_logit_sum_scale", 1.0),
        shrink=False,
    )


def _run(case: Case, config: MRPConfig, prompts: list[list[int]], store: str, device: str) -> list[Generation]:
    params = case.params
    model = load_checkpoint(case.weights(), device)
    model.config = replace(model.config, mask_id=params["mask_id"], eos_ids=tuple(params.get("stop_token_ids") or ()))
    target = Network("target", model, params["block_length"], store)
    head = MRPHead(load_module(case.weights(), model), target)
    sampling = Sampling(params["temperature"], params.get("top_k", 0), params.get("top_p", 1.0))
    engine = Engine({"target": target, "head": head}, MRP(config), sampling=sampling, batch_size=len(prompts))
    longest = max(len(prompt) for prompt in prompts)  # a batch shares one total length
    requests = [
        Request(f"{case.raw['id']} {i}", tuple(prompt), longest + params["gen_length"] - len(prompt))
        for i, prompt in enumerate(prompts)
    ]
    return engine.generate(requests, trace=True)


def _total(case: Case) -> int:
    prompts = case.raw["prompt_ids"]
    longest = max(map(len, prompts)) if isinstance(prompts[0], list) else len(prompts)
    block = case.params["block_length"]
    return -(-(longest + case.params["gen_length"]) // block) * block


# --- what is compared -------------------------------------------------------------------------------------------------


def _compare(case: Case, run: Generation) -> None:
    expected = case.expected
    equal("ids", run.raw_ids, expected["ids"])
    equal("steps", _steps(case, run), expected["steps"])
    equal("total_length", _total(case), expected["total_length"])
    if "spec_rounds" in expected:
        rounds = [step for step in traced(run) if _kind(step) == "verify"]
        equal("spec_rounds", len(rounds), expected["spec_rounds"])
        equal("drafts_proposed", run.proposed, expected["drafts_proposed"])
        equal("drafts_accepted", sum(_round(step)["accepted"] for step in rounds), expected["drafts_accepted"])
        real = sum(run.accepted) + expected["bonus_tokens"]
        equal("accepted and bonus tokens", real, sum(len(step["tokens"]) for step in rounds))
        bonus = sum(1 for step in rounds if step["extra"]["bonus"][0] >= 0)
        equal("bonus_tokens", bonus, expected["bonus_tokens"])
    if "vetoed" in expected:
        vetoed = sum(len(_places(step["extra"]["vetoed"])) for step in traced(run))
        equal("vetoed", vetoed, expected["vetoed"])


def _compare_counts(case: Case, run: Generation) -> None:
    expected = case.expected
    calls = {kind: n["calls"] for kind, n in run.counts["target"].items()}
    calls["denoise"] = calls.get("denoise", 0) + calls.pop("seed", 0)  # the official table counts a seed as a denoise
    _equal_calls("forwards", calls, expected["forwards"])
    equal("nfe", sum(n for kind, n in calls.items() if kind != "prefill"), expected["nfe"])
    head = {kind: n["calls"] for kind, n in run.counts.get("head", {}).items()}
    head["draft"] = head.pop("denoise", 0)
    _equal_calls("head_forwards", head, expected["head_forwards"])
    equal("drafter_nfe", sum(n for kind, n in head.items() if kind != "prefill"), expected["drafter_nfe"])


def _equal_calls(what: str, ours: Mapping[str, float], expected: Mapping[str, float]) -> None:
    for kind in sorted(set(ours) | set(expected)):
        equal(f"{what}.{kind}", ours.get(kind, 0), expected.get(kind, 0))


def _inside(run: Generation) -> dict[str, float]:
    """Forwards inside blocks, which do not depend on who stores."""
    return {kind: n["calls"] for kind, n in run.counts["target"].items() if kind not in ("prefill", "store")}


def _steps(case: Case, run: Generation) -> list[dict]:
    match case.raw["method"]:
        case "mrp_speculative":
            return [_round(step) for step in traced(run) if _kind(step) == "verify"]
        case "mrp_residual_remask":
            return _numbered(run, "vetoed")
        case "mrp_tau_remask":
            return _numbered(run, "remasked")
        case _:
            return _commits(run, case.raw["method"] == "mrp_direct")


def _kind(step: TracedStep) -> str:
    """Kind of the target's forward of a step."""
    return next(f["kind"] for f in step["forwards"] if f["role"] == "target")


def _round(step: TracedStep) -> dict:
    """A verification as the official trace has it: once all drafts were right and no mask is left, it counts the drafts
    that were never made as accepted too."""
    extra = step["extra"]
    drafts = [pair if pair[0] >= 0 else None for pair in extra["drafts"]]
    everything = None in drafts and extra["accepted"] == drafts.index(None)
    return {
        "block": step["block"],
        "accepted": len(drafts) if everything else extra["accepted"],
        "drafts": drafts,
        "bonus": extra["bonus"] if extra["bonus"][0] >= 0 else None,
        "positions": step["positions"],
        "tokens": step["tokens"],
    }


def _numbered(run: Generation, word: str) -> list[dict]:
    """Steps with their number inside the block and the proposed positions that stayed masked."""
    return [
        {
            "block": step["block"],
            "step": number,
            "positions": step["positions"],
            "tokens": step["tokens"],
            word: _places(step["extra"]["vetoed"]),
        }
        for number, step in _by_block(run)
    ]


def _commits(run: Generation, with_module: bool) -> list[dict]:
    """One entry a commit: the backbone's (mrp_iter 0), then each of the module's."""
    entries = []
    for number, step in _by_block(run):
        found = dict(zip(step["positions"], step["tokens"]))
        if not with_module:
            entries.append({"block": step["block"], "step": number, **_found(found, list(found))})
            continue
        order = step["extra"]["mrp_pass"]
        start = step["block"] * len(order)
        for iteration in range(max(order) + 1):
            chosen = [start + i for i, value in enumerate(order) if value == iteration]
            entry = {"block": step["block"], "step": number, "mrp_iter": iteration}
            entries.append({**entry, **_found(found, chosen)})
    return entries


def _found(found: dict[int, int], chosen: list[int]) -> dict[str, list[int]]:
    return {"positions": chosen, "tokens": [found[position] for position in chosen]}


def _by_block(run: Generation) -> Iterator[tuple[int, TracedStep]]:
    number, block = 0, -1
    for step in traced(run):
        number = number + 1 if step["block"] == block else 0
        block = step["block"]
        yield number, step


def _places(positions: list[int]) -> list[int]:
    return [position for position in positions if position >= 0]


# --- forwards of the module -------------------------------------------------------------------------------------------


def check_forward(file: Path) -> None:
    """Passes of the module with and without its prefix cache against the official ones. Raises Mismatch."""
    with safe_open(file, framework="pt") as handle:
        meta = handle.metadata()
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}
    model = load_checkpoint(file.parent / meta["weights"])
    module = load_module(file.parent / meta["weights"], model)
    known = {
        "prefix_ids", "block_ids", "position_ids", "backbone_hidden_prefix", "backbone_hidden_block",
        "backbone_logits_block", "block_ids_step1", "no_prefix_residual_logits", "no_prefix_mrp_hidden",
        "with_prefix_residual_logits", "with_prefix_mrp_hidden", "step1_corrected_logits", "block_ids_step2",
        "step2_residual_logits", "step2_corrected_logits",
    }  # fmt: skip
    if strangers := sorted(set(tensors) - known):
        raise Mismatch(f"unknown tensor {strangers[0]}")
    with torch.inference_mode():
        _check_backbone(model, tensors)
        _check_module(model, module, tensors)


def _check_backbone(model, tensors: dict[str, torch.Tensor]) -> None:
    prefix, block = tensors["prefix_ids"].view(1, -1), tensors["block_ids"].view(1, -1)
    width = block.shape[1]
    ids = torch.cat([prefix, block], 1)
    blocks = torch.arange(ids.shape[1]) // width
    hidden = model.hidden(ids, mask=(blocks[None] <= blocks[:, None])[None, None])
    _close("backbone_hidden_prefix", hidden[:, :-width], tensors["backbone_hidden_prefix"])
    _close("backbone_hidden_block", hidden[:, -width:], tensors["backbone_hidden_block"])
    _close("backbone_logits_block", model.project(hidden[:, -width:]), tensors["backbone_logits_block"])


def _check_module(model, module: MRPModule, tensors: dict[str, torch.Tensor]) -> None:
    block, width = tensors["block_ids"].view(-1), tensors["block_ids"].numel()
    start = int(tensors["position_ids"].view(-1)[0])
    before = tensors["backbone_hidden_block"].view(width, -1)
    logits = tensors["backbone_logits_block"].view(width, -1)
    first = _reveal(model, block, logits)
    equal("block_ids_step1", first.tolist(), tensors["block_ids_step1"].view(-1).tolist())

    alone = _pass(module, first, before, torch.arange(start, start + width), width, cache=None)
    _close("no_prefix_mrp_hidden", alone, tensors["no_prefix_mrp_hidden"])
    _close("no_prefix_residual_logits", module.project(alone), tensors["no_prefix_residual_logits"])

    cache = KVCache(module.config, 1, start + width, block.device, torch.float32)
    prefix = tensors["backbone_hidden_prefix"].view(start, -1)
    _pass(module, tensors["prefix_ids"].view(-1), prefix, torch.arange(start), width, cache)
    seen = _pass(module, first, before, torch.arange(start, start + width), width, cache)
    _close("with_prefix_mrp_hidden", seen, tensors["with_prefix_mrp_hidden"])
    _close("with_prefix_residual_logits", module.project(seen), tensors["with_prefix_residual_logits"])
    corrected = logits + module.project(seen)
    _close("step1_corrected_logits", corrected, tensors["step1_corrected_logits"])

    second = _reveal(model, first, corrected)
    equal("block_ids_step2", second.tolist(), tensors["block_ids_step2"].view(-1).tolist())
    again = _pass(module, second, before + seen, torch.arange(start, start + width), width, cache)
    _close("step2_residual_logits", module.project(again), tensors["step2_residual_logits"])
    _close("step2_corrected_logits", corrected + module.project(again), tensors["step2_corrected_logits"])


def _reveal(model, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """ids [B] with the most confident masked position of logits [B,V] filled in."""
    confidence, token = logits.softmax(-1).max(-1)
    place = confidence.masked_fill(ids != model.config.mask_id, -1).argmax()
    return ids.clone().index_put_((place,), token[place])


def _pass(module: MRPModule, ids, hidden, positions, block: int, cache: KVCache | None) -> torch.Tensor:
    """One pass over the tokens at `positions` [T]; without a cache they see one another only."""
    offset = 0 if cache is not None else int(positions[0])
    cache = cache or KVCache(module.config, 1, len(ids), ids.device, torch.float32)
    slots, row = (positions - offset).view(1, -1), torch.zeros(1, dtype=torch.long)
    slot_mapping = cache.slot_mapping(row, slots, torch.ones(1, dtype=torch.bool))
    if int(slots[0, 0]):
        bias = cache.prefix_bias(slots[:, -1] + 1, cache.capacity)
    else:
        bias = block_causal(slots, block, torch.float32)
    return module(
        ids, hidden, positions, CachedAttention(cache, slot_mapping, [QueryGroup(positions.view(1, -1), bias)])
    )


def _close(what: str, ours: torch.Tensor, expected: torch.Tensor) -> None:
    gap = (ours - expected.view_as(ours)).abs().max().item()
    if not gap <= TOLERANCE:
        raise Mismatch(f"{what} differs by {gap:.2e}, allowed {TOLERANCE:.0e}")
