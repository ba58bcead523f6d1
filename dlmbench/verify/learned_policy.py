"""Golden cases of the learned policy: traces of the official code (the policy and its two baselines), the network
alone, and the quantities of its training.

Compared: ids, every step, forwards of each sample (`steps_taken`) and of the batch (its longest sample's).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from dlmbench.backbone import load_checkpoint
from dlmbench.backbone.bidirectional import Bidirectional
from dlmbench.backbone.network import Network
from dlmbench.decoders.base import Decoder
from dlmbench.decoders.learned_policy import LearnedPolicy, LearnedPolicyConfig
from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine import Engine, Generation, Request
from dlmbench.heads.policy import PolicyNetwork, load_policy
from dlmbench.request import options
from dlmbench.training.learned_policy import advantages, bernoulli_log_likelihood, dpls_log_likelihood, reward
from dlmbench.verify.cases import Case, Mismatch, close, equal, know_equation, traced

FIELDS = {
    "id", "family", "weights", "policy_weights", "method", "params", "source", "prompt_ids", "expected", "diagnostics",
}  # fmt: skip
PARAMS = {
    "remasking", "gen_length", "block_length", "full_context", "sampling_mode", "temperature_policy", "thres", "steps",
    "token_temperature", "mask_token_id",
}  # fmt: skip


def check(case: Case, device: str = "cpu") -> None:
    """Run a trace or a fixture. Raises Mismatch."""
    match case.raw["method"]:
        case "policy_forward":
            _check_network(case)
        case "action_log_likelihood":
            _check_likelihood(case)
        case "reward":
            _check_reward(case)
        case _:
            _check_trace(case, device)


def _check_trace(case: Case, device: str) -> None:
    case.know(FIELDS, PARAMS, {"ids", "nfe", "steps_taken", "steps"})
    expected, prompts = case.expected, case.raw["prompt_ids"]
    several = isinstance(prompts[0], list)
    runs = _run(case, prompts if several else [prompts], device)
    for row, run in enumerate(runs):
        own = {name: expected[name][row] if several else expected[name] for name in ("ids", "steps", "steps_taken")}
        equal("ids", run.raw_ids, own["ids"])
        steps = [{"positions": step["positions"], "tokens": step["tokens"]} for step in traced(run)]
        equal("steps", steps, own["steps"])
        equal("steps_taken", _forwards(run), own["steps_taken"])
    equal("nfe", max(map(_forwards, runs)), expected["nfe"])


def _forwards(run: Generation) -> float:
    return sum(n["calls"] for n in run.counts["target"].values())


def _run(case: Case, prompts: list[list[int]], device: str) -> list[Generation]:
    params = case.params
    backbone = load_checkpoint(case.weights(), device)
    backbone.config = replace(backbone.config, mask_id=params["mask_token_id"], eos_ids=())
    nets: dict[str, Network] = {"target": Bidirectional("target", backbone, params["block_length"])}
    decoder = _decoder(params)
    if isinstance(decoder, LearnedPolicy):
        nets["head"] = decoder.head_network(nets["target"], case.weights("policy_weights"))
    requests = [Request(f"{case.raw['id']}/{i}", tuple(p), params["gen_length"]) for i, p in enumerate(prompts)]
    engine = Engine(nets, decoder, sampling=Sampling(params["token_temperature"]), batch_size=len(prompts))
    return engine.generate(requests, trace=True)


def _decoder(params: dict) -> Decoder:
    match params["remasking"]:
        case "policy":
            values = {
                "mode": params["sampling_mode"], "policy_temperature": params["temperature_policy"],
                "full_context": params["full_context"],
            }  # fmt: skip
            return LearnedPolicy(options.bind(LearnedPolicyConfig, values, "learned_policy"))
        case "fastdllm":
            return Threshold(ThresholdConfig(tau=params["thres"], inclusive=False))
        case "low_confidence":
            blocks = params["gen_length"] // params["block_length"]
            return Static(StaticConfig(steps=params["steps"] // blocks))
    raise Mismatch(f"unknown remasking {params['remasking']!r}")


# --- fixtures ---------------------------------------------------------------------------------------------------------


def _check_network(case: Case) -> None:
    know_equation(case, set(), set(), {"policy_weights", "cases"})
    policy = load_policy(case.weights("policy_weights"))
    for i, one in enumerate(case.raw["cases"]):
        for stranger in sorted(set(one) - {"mask", "confidence", "timestep", "logits"}):
            raise Mismatch(f"unknown field cases[{i}].{stranger}")
        logits = _logits(policy, one["confidence"], one["mask"], one["timestep"])
        close(f"cases[{i}].logits", logits, one["logits"], case.raw["tolerance"])


@torch.inference_mode()
def _logits(policy: PolicyNetwork, confidence: list[float], mask: list[int], time: float) -> torch.Tensor:
    """The network on one row, with plain attention."""

    def attend(_: int, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.transpose(0, 1) for t in (q, *kv.chunk(2, 1)))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)

    length = len(confidence)
    inputs = torch.tensor(confidence), torch.tensor(mask).bool(), torch.full((length,), time), torch.arange(length)
    return policy.project(policy(*inputs, attend))


def _check_likelihood(case: Case) -> None:
    actions = {"bernoulli_actions", "dpls_order_padded_with_minus_1"}
    know_equation(case, {"logits", "mask", "dpls_stop_logit"} | actions, {"bernoulli_loglik", "dpls_loglik"})
    given, expected, tolerance = case.raw["inputs"], case.expected, case.raw["tolerance"]
    logits, masked = torch.tensor(given["logits"], dtype=torch.float64), torch.tensor(given["mask"]).bool()
    drawn = bernoulli_log_likelihood(logits, masked, torch.tensor(given["bernoulli_actions"]).bool())
    close("bernoulli_loglik", drawn, expected["bernoulli_loglik"], tolerance)
    order = torch.tensor(given["dpls_order_padded_with_minus_1"])
    ordered = dpls_log_likelihood(logits, masked, order, given["dpls_stop_logit"])
    close("dpls_loglik", ordered, expected["dpls_loglik"], tolerance)


def _check_reward(case: Case) -> None:
    know_equation(case, set(), set(), {"cases", "group"})
    tolerance = case.raw["tolerance"]
    for i, one in enumerate(case.raw["cases"]):
        for stranger in sorted(set(one) - {"alpha", "L", "steps", "correct", "reward"}):
            raise Mismatch(f"unknown field cases[{i}].{stranger}")
        steps, correct = (torch.tensor(one[name], dtype=torch.float64) for name in ("steps", "correct"))
        close(f"cases[{i}].reward", reward(correct, steps, one["L"], one["alpha"]), one["reward"], tolerance)
    group = case.raw["group"]
    for stranger in sorted(set(group) - {"rewards", "advantages"}):
        raise Mismatch(f"unknown field group.{stranger}")
    ours = advantages(torch.tensor(group["rewards"], dtype=torch.float64))
    close("group.advantages", ours, group["advantages"], tolerance)
