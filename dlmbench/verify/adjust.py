"""Golden cases of ADJUST: traces of the authors' release, its sampler layer alone, and its training loss.

Compared: ids, the tokens of every step in the order of their commitment, forwards of the frozen model (empty steps
included) and the sampler calls that were needed. Cases with several prompts run as one batch, where every row must have
the counts of the whole; the release makes one call more in every step that commits (`sampler_nfe_official`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import torch

from dlmbench.backbone import load_checkpoint
from dlmbench.backbone.bidirectional import Bidirectional
from dlmbench.backbone.counter import Counter
from dlmbench.backbone.model import Transformer
from dlmbench.decoders.adjust import Adjust, AdjustConfig
from dlmbench.decoders.predict import Sampling
from dlmbench.engine import Engine, Generation, Request
from dlmbench.heads.adjust import load_module
from dlmbench.heads.adjust_network import AdjustHead
from dlmbench.training.adjust import teacher_loss, unroll_probabilities
from dlmbench.verify.cases import Case, Mismatch, close, equal, know_equation, traced

FIELDS = {
    "id", "family", "weights", "sampler_weights", "method", "params", "source", "prompt_ids", "expected", "diagnostics",
}  # fmt: skip
PARAMS = {
    "max_new_tokens", "steps", "use_marginals", "alg", "temperature", "top_p", "eps", "decoding_strategy",
    "mask_token_id", "mask_eos",
}  # fmt: skip
EXPECTED = {"ids", "nfe", "sampler_nfe_official", "sampler_nfe_needed", "steps"}
ROUNDING = 2e-6  # beyond the stated tolerance: expected values are written with six digits


def check(case: Case, device: str = "cpu") -> None:
    """Run a trace or a fixture. Raises Mismatch."""
    match case.raw["method"]:
        case "adjust_sampler_forward":
            _check_layer(case)
        case "adjust_training_loss":
            _check_loss(case)
        case _:
            _check_trace(case, device)


# --- traces -----------------------------------------------------------------------------------------------------------


def _check_trace(case: Case, device: str) -> None:
    case.know(FIELDS, PARAMS, EXPECTED)
    params, expected = case.params, case.expected
    for name, only in (("alg", "entropy"), ("decoding_strategy", "fixed")):
        equal(f"params.{name}", params[name], only)
    several = isinstance(case.raw["prompt_ids"][0], list)
    rows = list(range(len(case.raw["prompt_ids"]))) if several else [None]
    runs = _run(case, device)
    for row, run in zip(rows, runs):
        ids, own = (expected[name] if row is None else expected[name][row] for name in ("ids", "steps"))
        equal("ids", run.raw_ids, ids)
        steps = [{"positions": step["positions"], "tokens": step["tokens"]} for step in traced(run)]
        equal("steps", steps, own)
        equal("nfe", sum(n["calls"] for n in run.counts["target"].values()), expected["nfe"])
        needed = sum(n["calls"] for n in run.counts.get("head", {}).values())
        equal("sampler_nfe_needed", needed, expected["sampler_nfe_needed"])
        thrown_away = 0 if params.get("use_marginals") else sum(1 for step in steps if step["positions"])
        equal("sampler_nfe_official", needed + thrown_away, expected["sampler_nfe_official"])


def _run(case: Case, device: str) -> list[Generation]:
    params = case.params
    backbone = _backbone(case, params["mask_token_id"], device)
    length = params["max_new_tokens"]
    target = Bidirectional("target", backbone, length)
    nets = {"target": target, "head": AdjustHead(load_module(case.weights("sampler_weights"), backbone), target)}
    config = AdjustConfig(
        schedule="dream", steps=params["steps"], eps=params["eps"], use_marginals=params.get("use_marginals", False),
        suppress=_suppressed(case) if params.get("mask_eos") else (),
    )  # fmt: skip
    prompts = case.raw["prompt_ids"] if isinstance(case.raw["prompt_ids"][0], list) else [case.raw["prompt_ids"]]
    requests = [Request(f"{case.raw['id']}/{i}", tuple(prompt), length) for i, prompt in enumerate(prompts)]
    sampling = Sampling(params["temperature"], top_p=params["top_p"])
    return Engine(nets, Adjust(config), sampling=sampling, batch_size=len(prompts)).generate(requests, trace=True)


def _backbone(case: Case, mask_id: int | None = None, device: str = "cpu") -> Transformer:
    backbone = load_checkpoint(case.weights(), device)
    backbone.config = replace(backbone.config, eos_ids=(), mask_id=mask_id or backbone.config.mask_id)
    return backbone


def _suppressed(case: Case) -> tuple[int, ...]:
    raw = json.loads((case.weights() / "config.json").read_text())
    return tuple(raw[name] for name in ("pad_token_id", "bos_token_id") if raw.get(name) is not None)


# --- fixtures ---------------------------------------------------------------------------------------------------------

SEEN = {"masked_positions", "top5", "top5_logprob", "neg_entropy", "hidden_l2", "hidden_first4"}


@torch.inference_mode()
def _check_layer(case: Case) -> None:
    know_equation(case, {"token_states"}, set(), {"weights", "sampler_weights"})
    backbone, tolerance = _backbone(case), case.raw["tolerance"] + ROUNDING
    target = Bidirectional("target", backbone, 1)
    head = AdjustHead(load_module(case.weights("sampler_weights"), backbone), target)
    states = torch.tensor(case.raw["inputs"]["token_states"])
    view = _row_view(states[:1], backbone)
    canvas, counter = states[:1].clone(), Counter(1, torch.device("cpu"))
    for net in (target, head):
        net.allocate(1, states.shape[1] + 32, torch.nn.functional.pad(canvas, (0, 32)), counter)
    _, hidden = target.whole(view)
    equal("expected calls", len(states) - 1, len(case.raw["expected"]))
    for i, (tokens, expected) in enumerate(zip(states[1:], case.raw["expected"])):
        for stranger in sorted(set(expected) - SEEN):
            raise Mismatch(f"unknown field expected[{i}].{stranger}")
        hidden, logits = head.step(view, tokens.unsqueeze(0), hidden, view.live)
        at = (tokens == backbone.config.mask_id).nonzero().squeeze(1)
        logp, moved = logits[0, at].log_softmax(-1), hidden[0, at]
        best = logp.topk(5, -1)
        equal(f"masked_positions[{i}]", at.tolist(), expected["masked_positions"])
        equal(f"top5[{i}]", best.indices.tolist(), expected["top5"])
        close(f"top5_logprob[{i}]", best.values, expected["top5_logprob"], tolerance)
        close(f"neg_entropy[{i}]", (logp.exp() * logp).sum(-1), expected["neg_entropy"], tolerance)
        close(f"hidden_l2[{i}]", moved.norm(dim=-1), expected["hidden_l2"], tolerance)
        close(f"hidden_first4[{i}]", moved[:, :4], expected["hidden_first4"], tolerance)


def _row_view(tokens: torch.Tensor, backbone: Transformer) -> SimpleNamespace:
    """One whole row without a prompt, as far as a forward looks at a view."""
    length = tokens.shape[1]
    positions = torch.arange(length).unsqueeze(0)
    return SimpleNamespace(
        tokens=tokens, positions=positions, valid=positions >= 0, ends=torch.tensor([length]), max_row=length,
        live=torch.tensor([True]),
    )  # fmt: skip


def _check_loss(case: Case) -> None:
    inputs = {"student_logprobs", "teacher_logprobs", "scored"}
    know_equation(case, inputs, {"kl", "unroll_length_probabilities"})
    given, expected, tolerance = case.raw["inputs"], case.expected, case.raw["tolerance"]
    student, teacher = (torch.tensor(given[f"{who}_logprobs"], dtype=torch.float64) for who in ("student", "teacher"))
    close("kl", teacher_loss(student, teacher, torch.tensor(given["scored"]).bool()), expected["kl"], tolerance)
    for lengths, probabilities in expected["unroll_length_probabilities"].items():
        close(f"unroll_length_probabilities.{lengths}", unroll_probabilities(int(lengths)), probabilities, tolerance)
