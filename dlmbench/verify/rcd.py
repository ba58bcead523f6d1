"""Golden cases of RCD: equation fixtures, and traces of a reference implementation of ours (no official code).

Compared: every quantity of a fixture in float64 and in float32; of a trace the ids up to the end of the last block,
every step, the target's forwards by kind, the reference's forwards, the weights of the first steps, and ids and
forwards of the plain sampler. The reference implementation stores each block with a forward of its own, so cases run
with ``store=separate``; ids and steps must be the same with fused stores.

Traces run in float64, as they were made: on random weights each step multiplies the rounding of the residual by about
ten, and float32 takes another path after eight steps.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from dlmbench.backbone import load_checkpoint
from dlmbench.backbone.bidirectional import Bidirectional
from dlmbench.backbone.network import Network
from dlmbench.decoders.base import Decoder
from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.rcd import RCD, RCDConfig, mix, residual
from dlmbench.engine import Engine, Generation, Request
from dlmbench.training.rcd import masked_loss
from dlmbench.verify.cases import Case, Fixture, Mismatch, close, equal, know_equation, traced

FIELDS = {
    "id", "family", "weights", "reference_weights", "method", "params", "source", "prompt_ids", "expected",
    "diagnostics",
}  # fmt: skip
PARAMS = {
    "gen_length", "block_length", "denoising_steps", "steps", "confidence_threshold", "residual_init",
    "residual_temperature", "latent_strategy", "temperature", "mask_token_id", "remasking_strategy", "remasking",
}  # fmt: skip
EXPECTED = {
    "ids", "nfe", "nfe_prefill", "nfe_denoise", "nfe_store", "ref_nfe", "steps", "alpha_after_first_steps",
    "residual_off_ids", "residual_off_nfe",
}  # fmt: skip
INPUTS = {"vocab_size", "mask_token_id", "residual_temperature", "embedding", "logits", "input_ids"}
STRATEGIES = {  # how fixtures call them, where it is not our name
    "normalized-entropy-interpolation": "normalized_entropy",
    "inverse_normalized_entropy": "inverse_entropy",
    "fixed_0_3": "fixed",
}
SINGLE = 1e-4  # allowed difference of a fixture in float32
WEIGHT = 1e-6  # of the weights of a trace, which are written with seven digits


def check(case: Case, device: str = "cpu") -> None:
    """Run a fixture or a trace. Raises Mismatch."""
    if case.raw.get("kind") == "equation":
        (_check_loss if case.raw["method"] == "rcd_training_loss" else _check_equation)(case)
    else:
        _check_trace(case, device)


# --- equations --------------------------------------------------------------------------------------------------------


def _check_equation(case: Case) -> None:
    expected = {"alpha", "delta", "input_embeddings", "cold_start_embeddings", "variants"}
    know_equation(case, INPUTS, expected)
    for dtype, tolerance in ((torch.float64, case.raw["tolerance"]), (torch.float32, SINGLE)):
        _equations(case, dtype, tolerance)


def _equations(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    given, expected = case.raw["inputs"], case.expected
    table, logits = (torch.tensor(given[name], dtype=dtype) for name in ("embedding", "logits"))
    ids, temperature = torch.tensor(given["input_ids"]), given["residual_temperature"]
    equal("vocab_size", logits.shape[-1], given["vocab_size"])

    def inputs(alpha: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        masked = (ids == given["mask_token_id"]).unsqueeze(-1)
        return torch.where(masked, mix(table[given["mask_token_id"]], alpha, delta), table[ids])

    alpha, delta = residual(logits, table, temperature)
    close("alpha", alpha, expected["alpha"], tolerance)
    close("delta", delta, expected["delta"], tolerance)
    close("input_embeddings", inputs(alpha, delta), expected["input_embeddings"], tolerance)
    close("cold_start_embeddings", inputs(alpha * 0, delta), expected["cold_start_embeddings"], tolerance)
    for name, variant in expected["variants"].items():
        ours = residual(logits, table, temperature, STRATEGIES.get(name, name))
        values = variant if isinstance(variant, dict) else {"input_embeddings": variant}
        for part, value in values.items():
            got = {"alpha": ours[0], "delta": ours[1], "input_embeddings": inputs(*ours)}[part]
            close(f"variants.{name}.{part}", got, value, tolerance)


def _check_loss(case: Case) -> None:
    know_equation(case, {"target_logits", "labels", "masked", "t"}, {"loss"})
    given = case.raw["inputs"]
    logits = torch.tensor(given["target_logits"], dtype=torch.float64)
    masked = torch.tensor(given["masked"], dtype=torch.bool)
    loss = masked_loss(logits, torch.tensor(given["labels"]), masked, given["t"])
    close("loss", loss, case.expected["loss"], case.raw["tolerance"])


# --- traces -----------------------------------------------------------------------------------------------------------


def _check_trace(case: Case, device: str) -> None:
    case.know(FIELDS, PARAMS, EXPECTED)
    config, expected = _config(case), case.expected
    run = _run(case, RCD(config), "separate", device)
    _compare(case, run)
    target = {kind: n["calls"] for kind, n in run.counts["target"].items()}
    equal("nfe", sum(target.values()), expected["nfe"])
    for kind in ("prefill", "denoise", "store"):
        if f"nfe_{kind}" in expected:
            equal(f"nfe_{kind}", target.get(kind, 0), expected[f"nfe_{kind}"])
    equal("ref_nfe", sum(n["calls"] for n in run.counts.get("reference", {}).values()), expected["ref_nfe"])
    plain = _run(case, config.plain(_full(case)), "separate", device)
    equal("residual_off_ids", plain.raw_ids, expected["residual_off_ids"])
    equal("residual_off_nfe", sum(n["calls"] for n in plain.counts["target"].values()), expected["residual_off_nfe"])
    _same_as_plain(_run(case, RCD(replace(config, alpha=0.0)), "separate", device), plain)
    if not _full(case):
        _compare(case, _run(case, RCD(config), "fused", device))


def _compare(case: Case, run: Generation) -> None:
    expected = case.expected
    equal("ids", run.raw_ids, expected["ids"])
    fields = ("positions", "tokens") if _full(case) else ("block", "positions", "tokens")
    equal("steps", [{k: v for k, v in step.items() if k in fields} for step in traced(run)], expected["steps"])
    masked = set(_positions(case, run))
    for i, (step, alphas) in enumerate(zip(traced(run), expected["alpha_after_first_steps"])):
        first = len(case.raw["prompt_ids"]) if _full(case) else step["block"] * case.params["block_length"]
        ours = [alpha if first + at in masked else None for at, alpha in enumerate(step["extra"]["alpha"])]
        equal(f"alpha_after_first_steps[{i}] nulls", [a is None for a in ours], [a is None for a in alphas])
        close(f"alpha_after_first_steps[{i}]", _numbers(ours), _numbers(alphas), WEIGHT)
        masked -= set(step["positions"])


def _same_as_plain(off: Generation, plain: Generation) -> None:
    equal("ids with alpha=0", off.raw_ids, plain.raw_ids)
    ours, theirs = ({kind: n["calls"] for kind, n in run.counts["target"].items()} for run in (off, plain))
    equal("forwards with alpha=0", ours, theirs)


def _numbers(alphas: list[float | None]) -> torch.Tensor:
    return torch.tensor([0.0 if alpha is None else alpha for alpha in alphas])


def _positions(case: Case, run: Generation) -> range:
    prompt = len(case.raw["prompt_ids"])
    return range(prompt, prompt + len(run.raw_ids))


def _full(case: Case) -> bool:
    return case.raw["family"] != "sdar"


def _config(case: Case) -> RCDConfig:
    params = case.params
    if params["residual_init"] not in ("cold", "warm"):
        raise Mismatch(f"unknown residual_init {params['residual_init']!r}")
    shared: Fixture = {
        "residual_init": params["residual_init"],
        "residual_temperature": params["residual_temperature"],
        "latent_strategy": STRATEGIES.get(params["latent_strategy"], params["latent_strategy"]),
    }
    rule = params.get("remasking_strategy") or params.get("remasking")
    if rule == "low_confidence" and _full(case):
        blocks = params["gen_length"] // params["block_length"]
        return RCDConfig(sampler="static", steps=params["steps"] // blocks, **shared)
    match rule:
        case "low_confidence_dynamic":
            return RCDConfig(tau=params["confidence_threshold"], steps=params["denoising_steps"], **shared)
        case "low_confidence_static":
            return RCDConfig(sampler="static", steps=params["denoising_steps"], **shared)
    raise Mismatch(f"unknown sampling rule {rule!r}")


def _run(case: Case, decoder: Decoder, store: str, device: str) -> Generation:
    params = case.params
    folders = {"target": "weights"}
    if isinstance(decoder, RCD) and "reference" in decoder.needs(decoder.config, "full" if _full(case) else None):
        folders["reference"] = "reference_weights"
    nets: dict[str, Network] = {}
    for role, field in folders.items():
        model = load_checkpoint(case.weights(field), device, torch.float64)
        model.config = replace(model.config, mask_id=params["mask_token_id"], eos_ids=())
        if _full(case):
            nets[role] = Bidirectional(role, model, params["block_length"])
        else:
            nets[role] = Network(role, model, params["block_length"], store)
    engine = Engine(nets, decoder, sampling=Sampling(params["temperature"]))
    request = Request(case.raw["id"], tuple(case.raw["prompt_ids"]), params["gen_length"])
    return engine.generate([request], trace=True)[0]
