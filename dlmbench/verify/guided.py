"""Golden cases of Guided Diffusion: traces on Dream with a Qwen2 guide, and match rules.

Traces freeze the prompt at the first step and send all proposals through the guide at once. Compared: ids, every step,
forwards and rows of both networks, and that neither the chunk nor the batch changes the ids. `guide_nfe` counts the
prefill.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from dlmbench.backbone import load_checkpoint
from dlmbench.backbone.bidirectional import Bidirectional, CachePolicy
from dlmbench.backbone.network import Network
from dlmbench.decoders.guided import Guided, GuidedConfig, agrees
from dlmbench.engine import Engine, Generation, Request
from dlmbench.verify.cases import Case, Mismatch, equal, traced

FIELDS = {"id", "family", "weights", "guide_weights", "method", "params", "source", "prompt_ids", "expected",
          "diagnostics"}  # fmt: skip
PARAMS = {"gen_length", "match", "match_top_k", "match_relative", "cache", "mask_token_id", "eos_token_id",
          "temperature"}  # fmt: skip
EXPECTED = {"ids", "nfe", "guide_nfe", "guide_prefill", "query_tokens_per_forward", "guide_tokens_per_forward", "steps"}
RULES = {"deterministic": "top1", "topk": "topk", "topk_relative": "topk_relative"}
POLICIES = {"prompt_frozen_at_first_step": "prompt", "none": "none"}


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    if case.raw["method"] == "guided_match_rules":
        return check_rules(case)
    case.know(FIELDS, PARAMS, EXPECTED)
    if case.params["temperature"]:
        raise Mismatch("proposals are always the argmax; temperature must be 0")
    expected = case.expected
    run = _run(case, device, chunk=0)[0]
    equal("ids", run.raw_ids, expected["ids"])
    steps = [{"positions": step["positions"], "tokens": step["tokens"]} for step in traced(run) if step["positions"]]
    equal("steps", steps, expected["steps"])
    target = [forward for step in traced(run) for forward in step["forwards"] if forward["role"] == "target"]
    guide = [forward for step in traced(run) for forward in step["forwards"] if forward["role"] == "guide"]
    prefill = run.counts["guide"].get("prefill", {"calls": 0, "query_tokens": 0})
    prefills = int(prefill["calls"])
    equal("nfe", len(target), expected["nfe"])
    equal("guide_prefill", prefills, expected["guide_prefill"])
    equal("guide_nfe", len(guide) + prefills, expected["guide_nfe"])
    equal("query_tokens_per_forward", [f["query_tokens"] for f in target], expected["query_tokens_per_forward"])
    rows = [prefill["query_tokens"]] * prefills + [f["query_tokens"] for f in guide]
    equal("guide_tokens_per_forward", rows, expected["guide_tokens_per_forward"])
    for chunk in (1, 3, 32):
        for other in _run(case, device, chunk, copies=2):
            equal(f"ids with chunk {chunk} in a batch", other.raw_ids, expected["ids"])


def _run(case: Case, device: str, chunk: int, copies: int = 1) -> list[Generation]:
    params = case.params
    config = GuidedConfig(
        match=RULES[params["match"]], top=params["match_top_k"], relative=params["match_relative"] or 0.0, chunk=chunk
    )
    target, guide = (load_checkpoint(case.weights(field), device) for field in ("weights", "guide_weights"))
    eos = (params["eos_token_id"],)
    target.config = replace(target.config, mask_id=params["mask_token_id"], eos_ids=eos)
    guide.config = replace(guide.config, eos_ids=eos)
    policy = CachePolicy(POLICIES[params["cache"]])
    nets = {
        "target": Bidirectional("target", target, params["gen_length"], policy=policy),
        "guide": Network("guide", guide, 1),
    }
    prompt = tuple(case.raw["prompt_ids"])
    requests = [Request(f"{case.raw['id']} {row}", prompt, params["gen_length"]) for row in range(copies)]
    return Engine(nets, Guided(config), batch_size=copies).generate(requests, trace=True)


RULE_FIELDS = {"id", "kind", "method", "source", "cases"}


def _rule(name: str) -> GuidedConfig:
    """``deterministic``, ``topk5``, ``topk_relative_k2_r05``, ``probability_above_0_1``."""
    if name == "deterministic":
        return GuidedConfig(match="top1")
    if match := re.fullmatch(r"topk(\d+)", name):
        return GuidedConfig(match="topk", top=int(match[1]))
    if match := re.fullmatch(r"topk_relative_k(\d+)_r(\d)(\d+)", name):
        return GuidedConfig(match="topk_relative", top=int(match[1]), relative=float(f"{match[2]}.{match[3]}"))
    if match := re.fullmatch(r"probability_above_(\d+)_(\d+)", name):
        return GuidedConfig(match="probability", eta=float(f"{match[1]}.{match[2]}"))
    raise Mismatch(f"unknown rule {name!r}")


def check_rules(case: Case) -> None:
    """Lengths of agreeing prefixes on given probabilities. Raises Mismatch."""
    for stranger in sorted(set(case.raw) - RULE_FIELDS):
        raise Mismatch(f"unknown field {stranger}")
    for number, one in enumerate(case.raw["cases"]):
        for stranger in sorted(set(one) - {"guide_probs", "draft", "accepted", "committed"}):
            raise Mismatch(f"unknown field cases[{number}].{stranger}")
        logits, tokens = torch.tensor(one["guide_probs"]).log(), torch.tensor(one["draft"])
        for name in {**one["accepted"], **one["committed"]}:
            good = agrees(_rule(name), tokens, logits, torch.zeros(len(tokens)))
            accepted = int(good.long().cumprod(0).sum())
            equal(f"cases[{number}].accepted.{name}", accepted, one["accepted"][name])
            equal(f"cases[{number}].committed.{name}", max(accepted, 1), one["committed"][name])
