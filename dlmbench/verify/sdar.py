"""Golden cases of the SDAR backbone and its own decoders, and of DreamReasoner's, which are the same but for an entropy
of the proposed token alone and a last step that reveals whatever is left.

Compared: all ids up to the end of the last decoded block, every step, the forwards by kind, and where decoding stopped.
The official loop spends a separate store forward on every block, so cases run with ``store=separate``; ids and steps
must be the same with fused stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open

from dlmbench.backbone import load_checkpoint
from dlmbench.backbone.attention import CachedAttention, QueryGroup, block_causal
from dlmbench.backbone.cache import KVCache
from dlmbench.backbone.descriptor import Descriptor, Told
from dlmbench.backbone.experts import route
from dlmbench.backbone.model import Layer, Transformer
from dlmbench.backbone.network import Network
from dlmbench.decoders.entropy import Entropy, EntropyConfig
from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.sequential import Sequential, SequentialConfig
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine import Engine, Generation, Request
from dlmbench.verify.cases import Case, Mismatch, equal, traced

FIELDS = {
    "id", "family", "weights", "method", "params", "source", "note", "prompt_ids", "min_top1_top2_margin", "expected",
}  # fmt: skip
PARAMS = {
    "mask_id", "temperature", "top_k", "top_p", "block_length", "denoising_steps", "gen_length", "remasking_strategy",
    "confidence", "eb_threshold", "confidence_threshold", "stop_token_ids",
}  # fmt: skip
EXPECTED = {"ids", "nfe", "forwards", "total_length", "stopped", "first_stop_position", "steps"}
TOLERANCE = 1e-4  # logits have a standard deviation of about 5


def check(case: Case, device: str = "cpu") -> None:
    """Run a case with separate and with fused stores. Raises Mismatch."""
    case.know(FIELDS, PARAMS, EXPECTED)
    separate = _run(case, "separate", device)
    _compare(case, separate)
    calls = {kind: n["calls"] for kind, n in separate.counts["target"].items()}
    equal("forwards", {kind: calls.get(kind, 0) for kind in case.expected["forwards"]}, case.expected["forwards"])
    equal("nfe", sum(n for kind, n in calls.items() if kind != "prefill"), case.expected["nfe"])
    fused = _run(case, "fused", device)
    _compare(case, fused)
    equal("fused denoise forwards", fused.counts["target"]["denoise"]["calls"], calls["denoise"])


def _compare(case: Case, run: Generation) -> None:
    expected, prompt = case.expected, len(case.raw["prompt_ids"])
    equal("ids", run.raw_ids, expected["ids"])
    steps = [{name: step[name] for name in ("block", "positions", "tokens")} for step in traced(run)]
    equal("steps", steps, expected["steps"])
    equal("stopped", run.stop_reason == "eos", expected["stopped"])
    if not expected["stopped"]:  # decoding went to the end of the canvas
        equal("total_length", prompt + len(run.raw_ids), expected["total_length"])
    stop = case.params.get("stop_token_ids") or []
    first = next((prompt + i for i, token in enumerate(run.raw_ids) if token in stop), None)
    equal("first_stop_position", first, expected["first_stop_position"])


def _run(case: Case, store: str, device: str) -> Generation:
    params = case.params
    model = load_checkpoint(case.weights(), device, told=case.told("block_causal"))
    model.config = replace(model.config, eos_ids=tuple(params.get("stop_token_ids") or ()))
    sampling = Sampling(params["temperature"], params["top_k"], params["top_p"], _confidence(params["confidence"]))
    network = Network("target", model, params["block_length"], store)
    engine = Engine({"target": network}, _decoder(params, case.raw["method"]), sampling=sampling)
    request = Request(case.raw["id"], tuple(case.raw["prompt_ids"]), params["gen_length"])
    return engine.generate([request], trace=True)[0]


def _confidence(name: str) -> str:
    return {"full_softmax": "full", "post_truncation_softmax": "truncated"}[name]


def _decoder(params: dict, method: str):
    steps = params["denoising_steps"]
    match params["remasking_strategy"]:
        case "low_confidence_static":
            return Static(StaticConfig(steps=steps))
        case "low_confidence_dynamic":
            return Threshold(ThresholdConfig(tau=params["confidence_threshold"], steps=steps))
        case "sequential":
            return Sequential(SequentialConfig(steps=steps))
        case "entropy_bounded":
            if method == "dreamreasoner":
                return Entropy(EntropyConfig(budget=params["eb_threshold"], rule="chosen", steps=steps))
            return Entropy(EntropyConfig(budget=params["eb_threshold"]))
        case other:
            raise Mismatch(f"unknown remasking_strategy {other!r}")


def check_forward(file: Path) -> None:
    """Uncached and cached forwards, and the experts chosen on the way, against the official ones. Raises Mismatch."""
    with safe_open(file, framework="pt") as handle:
        meta = handle.metadata()
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}
    model = load_checkpoint(file.parent / meta["weights"], told=Told(Descriptor(attention="block_causal", mask_id=0)))
    block, prefix = int(meta["block_length"]), int(meta["prefill_length"])
    ids, positions = tensors["input_ids"].view(1, -1), tensors["position_ids"].view(1, -1)
    bias = block_causal(positions, block, torch.float32)
    with torch.inference_mode():
        with _watched(model, tensors) as inside:
            hidden = model.hidden(ids, positions, bias)
        _check_inside(inside, tensors)
        _close("full_last_hidden", hidden, tensors["full_last_hidden"])
        _close("full_logits", model.project(hidden), tensors["full_logits"])
        cache = KVCache(model.config, 1, ids.shape[1], ids.device, torch.float32)

        def cached(first: int, last: int, seen_bias: torch.Tensor) -> torch.Tensor:
            part = positions[:, first:last]
            attend = CachedAttention(cache, cache.slot_mapping(None, part), [QueryGroup(part, seen_bias)])
            return model.project(model(model.embed(ids[0, first:last]), part.reshape(-1), attend)).unsqueeze(0)

        prefill = cached(0, prefix, block_causal(positions[:, :prefix], block, torch.float32))
        _close("prefill_logits", prefill, tensors["prefill_logits"])
        keys = cache.leading(prefix)[0][0]
        _close("layer0_key_cache", keys, tensors["layer0_key_cache"])
        whole = ids.shape[1]
        last = cached(prefix, whole, cache.prefix_bias(torch.tensor([whole]), whole))
        _close("block_logits", last, tensors["block_logits"])


@contextmanager
def _watched(model: Transformer, names: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """What layers leave behind them and which experts are chosen, under the names of those that a fixture has."""
    inside: dict[str, torch.Tensor] = {}
    handles = []
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        if (name := f"hidden_after_layer{index}") in names:
            handles.append(layer.register_forward_hook(lambda *call, name=name: inside.update({name: call[2].clone()})))
        if (name := f"layer{index}_experts") in names:
            assert layer.experts is not None
            rule = layer.experts.rule

            def chosen(_, args, name=name, rule=rule) -> None:
                experts, shares = route(args[1], args[2].router, args[2].bias, rule)
                experts, order = experts.sort(-1)
                inside.update({name: experts, name.removesuffix("s") + "_weights": shares.gather(1, order)})

            handles.append(layer.experts.register_forward_pre_hook(chosen))
    try:
        yield inside
    finally:
        for handle in handles:
            handle.remove()


def _check_inside(inside: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    for name, ours in inside.items():
        if name.endswith("_experts"):
            equal(name, ours.tolist(), tensors[name].tolist())
        else:
            _close(name, ours, tensors[name])


def _close(what: str, ours: torch.Tensor, expected: torch.Tensor) -> None:
    gap = (ours - expected.view_as(ours)).abs().max().item()
    if not gap <= TOLERANCE:
        raise Mismatch(f"{what} differs by {gap:.2e}, allowed {TOLERANCE:.0e}")
