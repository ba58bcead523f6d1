"""Golden cases of SimSD: traces, attention masks and acceptance rules.

Traces run with the official budget (rounds), emission, EOS gate and separate stores. Compared: returned ids, what
entered the context, every field of every round, all counts of both networks, the statistics, and target-only decoding
of the same target (`native`; on uncached cases its cached form, the uncached one being given).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from dlmbench.backbone import load_checkpoint
from dlmbench.backbone.attention import block_causal
from dlmbench.backbone.network import Network
from dlmbench.decoders import speculation as rules
from dlmbench.decoders.base import View
from dlmbench.decoders.simsd import SimSD, SimSDConfig
from dlmbench.decoders.speculation import KNOWN, NEVER
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.engine import Engine, Generation, Request
from dlmbench.verify.cases import Case, Fixture, Mismatch, equal, traced

FIELDS = {"id", "family", "weights", "draft_weights", "method", "path", "note", "params", "source", "prompt_ids",
          "expected", "native", "robustness"}  # fmt: skip
PARAMS = {
    "block_length", "denoising_steps", "num_blocks", "K", "mask_token_id", "pad_token_id", "eos_ids", "draft_sampling",
    "speculative_branch", "mrs_verify_order", "partial_block_fill", "remasking_strategy", "confidence_threshold",
    "draft_steps_per_block", "eos_min_prob", "share_mask_position",
}  # fmt: skip
EXPECTED = {
    "ids", "context_ids", "ids_equal_context", "nfe", "verify_nfe", "target_store_nfe", "drafter_nfe",
    "drafter_denoise_nfe", "drafter_store_nfe", "target_prefill", "drafter_prefill", "rounds", "stats", "steps",
    "row0_equals_run_without_padding",
}  # fmt: skip
NATIVE = {
    "description", "ids", "nfe", "denoise_nfe", "store_nfe", "prefill", "speculative_equals_native", "relation",
    "first_difference", "cached_native_ids",
}  # fmt: skip


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    unit = {"simsd_mask": check_mask, "simsd_acceptance": check_acceptance}.get(case.raw["method"])
    if unit is not None:
        return unit(case.raw)
    case.know(FIELDS, PARAMS, EXPECTED)
    prompts = case.raw["prompt_ids"]
    batch = case.raw["path"] == "uncached-batch"
    runs = _run(case, _padded(prompts, case.params["pad_token_id"]) if batch else [prompts], device)
    if batch:
        _compare_batch(case, runs, device)
        return
    run, expected = runs[0], case.expected
    equal("ids", run.raw_ids, expected["ids"])
    rounds = _rounds(run, case.params["block_length"])
    blocks = [block for one in rounds for block in one["blocks"]]
    if case.raw["path"] == "cached":
        steps = [_cached_step(number, one, case) for number, one in enumerate(rounds)]
        context = [token for step in rounds for token in step["tokens"]]
        ours = {"context_ids": context, "ids_equal_context": context == run.raw_ids, "rounds": len(rounds)}
    else:
        steps, ours = [_uncached_step(block) for block in blocks], {}
    _equal_records("steps", steps, expected["steps"])
    ours |= _counts(run) | {"stats": _stats(rounds, blocks, case)}
    for name in expected:
        if name not in ("ids", "steps"):
            _equal_field(name, ours, expected)
    _compare_native(case, run, device)


# --- running ----------------------------------------------------------------------------------------------------------


def _run(case: Case, prompts: list[list[int]], device: str) -> list[Generation]:
    params = case.params
    lookahead = params.get("K", 1)
    rounds = params["num_blocks"] // lookahead
    stop = params.get("draft_steps_per_block", -1)
    if params.get("mrs_verify_order", "position") != "position":
        raise Mismatch("mrs_verify_order is not position")
    config = SimSDConfig(
        accept=params["speculative_branch"], fill=params["partial_block_fill"], sampling=params["draft_sampling"],
        drafting={"low_confidence_static": "static", "low_confidence_dynamic": "dynamic"}[
            params.get("remasking_strategy", "low_confidence_static")
        ],
        tau=params.get("confidence_threshold", 0.9), steps=params["denoising_steps"],
        draft_steps=stop if 0 < stop < params["denoising_steps"] else 0, budget="rounds", rounds=rounds,
        emit="official", trim_after_eos=False, eos_min_prob=params.get("eos_min_prob", 0.0), eos_gate="official",
        cached=case.raw["path"] == "cached", lookahead=lookahead,
        share_mask_position=params.get("share_mask_position", True),
    )  # fmt: skip
    nets = {
        role: Network(role, _model(case, field, device), params["block_length"], "separate")
        for role, field in (("target", "weights"), ("draft", "draft_weights"))
    }
    engine = Engine(nets, SimSD(config), batch_size=len(prompts))
    budget = rounds * lookahead * params["block_length"]
    requests = [Request(f"{case.raw['id']} {row}", tuple(prompt), budget) for row, prompt in enumerate(prompts)]
    return engine.generate(requests, trace=True)


def _model(case: Case, field: str, device: str):
    model = load_checkpoint(case.weights(field), device)
    eos = tuple(case.params["eos_ids"] or ())
    model.config = replace(model.config, mask_id=case.params["mask_token_id"], eos_ids=eos)
    return model


def _padded(prompts: list[list[int]], pad: int) -> list[list[int]]:
    longest = max(map(len, prompts))
    return [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]


# --- reading traces ---------------------------------------------------------------------------------------------------


def _rounds(run: Generation, block_length: int) -> list[Fixture]:
    """The verifications of a trace, each with its blocks up to the one that ended it."""
    rounds: list[Fixture] = []
    drafts = 0
    for step in traced(run):
        drafts += sum(forward["role"] == "draft" and forward["kind"] == "denoise" for forward in step["forwards"])
        extra = step["extra"]
        if not extra.get("verified"):
            continue
        blocks = []
        for number, at in enumerate(range(0, len(extra["draft"]), block_length)):
            part = {
                name: values[at : at + block_length] if isinstance(values, list) else values
                for name, values in extra.items()
            }
            blocks.append({**part, "number": number, "start": extra["window"] + at})
            if any(part["replaced"]):
                break
        rounds.append({"blocks": blocks, "draft_forwards": drafts, **step})
        drafts = 0
    return rounds


def _judged(block: Fixture) -> Fixture:
    """Fields that both sorts of steps share; lists run over the positions that were drafted for."""
    known = sum(step == -2 for step in block["step_map"])
    replaced = [token for token, yes in zip(block["final"], block["replaced"]) if yes]
    return {
        "draft_ids": block["draft"][known:], "step_map": block["step_map"][known:],
        "target_argmax": block["target"][known:], "n_accepted": sum(block["accepted"]),
        "bonus": replaced[0] if replaced else None,
    }  # fmt: skip


def _cached_step(number: int, one: Fixture, case: Case) -> Fixture:
    block = one["blocks"][0]
    step = {
        "round": number, "positions": one["positions"], "tokens": one["tokens"],
        "emitted": [t for t, a, r in zip(block["final"], block["accepted"], block["replaced"]) if a or r],
        "ctx_aligned": block["start"], "leftover_len": sum(s == -2 for s in block["step_map"]),
        "draft_forwards": one["draft_forwards"], **_judged(block),
    }  # fmt: skip
    return step | ({"eos_bonus_dropped": True} if block["eos_dropped"] else {})


def _uncached_step(block: Fixture) -> Fixture:
    final = [at for at, (a, r) in enumerate(zip(block["accepted"], block["replaced"])) if a or r]
    return {
        "block_in_round": block["number"], "start": block["start"], **_judged(block),
        "positions": [block["start"] + at for at in final], "tokens": [block["final"][at] for at in final],
    }  # fmt: skip


def _stats(rounds: list[Fixture], blocks: list[Fixture], case: Case) -> Fixture:
    """The official statistics. A drafted position counts as seen up to and including the first rejected one."""
    drafted = [[step >= 0 for step in block["step_map"]] for block in blocks]
    whole = [step >= 0 for one in rounds for step in one["extra"]["step_map"]]
    stats = {
        "per_block_accepted": [sum(block["accepted"]) for block in blocks],
        "total_draft_tokens": sum(whole),
        "total_accepted_tokens": sum(sum(block["accepted"]) for block in blocks),
        "total_bonus_tokens": sum(sum(block["replaced"]) for block in blocks),
        "total_real_drafted_accepted": sum(
            a and d for block, real in zip(blocks, drafted) for a, d in zip(block["accepted"], real)
        ),
        "total_real_drafted_seen": sum(
            (a or r) and d
            for block, real in zip(blocks, drafted)
            for a, r, d in zip(block["accepted"], block["replaced"], real)
        ),
    }
    eos = set(case.params["eos_ids"] or ())
    by = {"accepted": 0, "bonus": 0}
    for block in blocks:
        hits = [name for name, flags in (("accepted", "accepted"), ("bonus", "replaced"))
                if any(yes and token in eos for token, yes in zip(block["final"], block[flags]))]  # fmt: skip
        if hits:
            by[hits[0]] += 1
    stats |= {f"eos_stop_from_{name}": number for name, number in by.items() if number}
    dropped = sum(one["extra"]["eos_dropped"] for one in rounds)
    return stats | ({"dropped_eos_bonus": dropped} if dropped else {})


def _counts(run: Generation) -> dict[str, int]:
    def calls(role: str, kind: str) -> int:
        return int(run.counts.get(role, {}).get(kind, {}).get("calls", 0))

    verify, stored = calls("target", "verify"), calls("target", "store")
    drafts, kept = calls("draft", "denoise"), calls("draft", "store")
    return {
        "nfe": verify + stored, "verify_nfe": verify, "target_store_nfe": stored, "drafter_nfe": drafts + kept,
        "drafter_denoise_nfe": drafts, "drafter_store_nfe": kept, "target_prefill": calls("target", "prefill"),
        "drafter_prefill": calls("draft", "prefill"),
    }  # fmt: skip


# --- comparing --------------------------------------------------------------------------------------------------------


def _equal_records(what: str, ours: list[Fixture], expected: list[Fixture]) -> None:
    equal(f"number of {what}", len(ours), len(expected))
    for number, (one, other) in enumerate(zip(ours, expected)):
        for name in {**other, **{k: v for k, v in one.items() if k == "eos_bonus_dropped"}}:
            _equal_field(name, one, other, f"{what}[{number}].")


def _equal_field(name: str, ours: dict, expected: dict, where: str = "") -> None:
    if name not in ours and name not in expected:
        return
    if isinstance(expected.get(name), dict):
        for inner in {**expected[name]}:
            _equal_field(inner, ours[name], expected[name], f"{where}{name}.")
        return
    if name not in ours and expected[name]:
        raise Mismatch(f"unknown field {where}{name}")
    equal(f"{where}{name}", ours.get(name), expected.get(name))


def _compare_batch(case: Case, runs: list[Generation], device: str) -> None:
    expected, params = case.expected, case.params
    equal("ids", [run.raw_ids for run in runs], expected["ids"])
    for row, run in enumerate(runs):
        counts = _counts(run)
        equal(f"row {row} nfe", [counts["nfe"], counts["drafter_nfe"]], [expected["nfe"], expected["drafter_nfe"]])
        rounds = _rounds(run, params["block_length"])
        stats = _stats(rounds, [block for one in rounds for block in one["blocks"]], case)
        for name in expected["stats"][row]:
            _equal_field(name, stats, expected["stats"][row], f"stats[{row}].")
    alone = _run(case, [case.raw["prompt_ids"][0]], device)[0].raw_ids
    equal("row0_equals_run_without_padding", alone == runs[0].raw_ids, expected["row0_equals_run_without_padding"])


class _Native(Static):
    """Target-only decoding by SimSD's schedule, which splits what is masked over the steps that are left."""

    def due(self, view: View) -> torch.Tensor:
        left = (self.config.steps - view.step).clamp_min(1)
        return (view.masked.sum(1) + left - 1) // left


def _compare_native(case: Case, run: Generation, device: str) -> None:
    """Target-only decoding of as many blocks, and how the two relate."""
    native = case.raw["native"]
    for stranger in sorted(set(native) - NATIVE):
        raise Mismatch(f"unknown field native.{stranger}")
    params, prompt = case.params, case.raw["prompt_ids"]
    block = params["block_length"]
    net = Network("target", _model(case, "weights", device), block, "separate")
    engine = Engine({"target": net}, _Native(StaticConfig(steps=params["denoising_steps"])))
    budget = params["num_blocks"] * block - len(prompt) % block
    plain = engine.generate([Request("native", tuple(prompt), budget)])[0]
    cached = case.raw["path"] == "cached"
    equal("native.ids", plain.raw_ids, native["ids" if cached else "cached_native_ids"])
    if cached:
        calls = {kind: n["calls"] for kind, n in plain.counts["target"].items()}
        for name, kind in (("denoise_nfe", "denoise"), ("store_nfe", "store"), ("prefill", "prefill")):
            equal(f"native.{name}", calls.get(kind, 0), native[name])
        equal("native.nfe", calls.get("denoise", 0) + calls.get("store", 0), native["nfe"])
    ours, theirs = run.raw_ids, native["ids"]
    differ = next((at for at, (a, b) in enumerate(zip(ours, theirs)) if a != b), None)
    relation = "diverges"
    if differ is None:
        shorter = (len(ours) > len(theirs)) - (len(ours) < len(theirs))
        relation = {0: "identical", -1: "spec_is_prefix", 1: "native_is_prefix"}[shorter]
    equal("native.relation", relation, native["relation"])
    equal("native.speculative_equals_native", ours == theirs, native["speculative_equals_native"])
    if "first_difference" in native:
        equal("native.first_difference", differ, native["first_difference"])


# --- units ------------------------------------------------------------------------------------------------------------

MASK_FIELDS = {
    "id", "method", "source", "name", "path", "kind", "note", "block_length", "denoising_steps", "cached_prefix",
    "leftover", "step_map", "columns", "query_rows", "position_ids", "query_tokens", "mask", "prompt_len",
    "accepted_block_lengths", "step_maps", "share_mask_position", "token_labels", "block_ids",
}  # fmt: skip


def check_mask(raw: Fixture) -> None:
    """A mask of `masks.json`: rows of 0 and 1, queries by keys. Raises Mismatch."""
    _know(raw, MASK_FIELDS)
    build = {"prefill": _prefill_mask, "verify": _verify_mask}[raw["kind"]]
    allowed, positions = (_row_mask if raw["path"] == "uncached" else build)(raw)
    equal("mask", ["".join(map(str, row)) for row in allowed.int().tolist()], raw["mask"])
    equal("position_ids", positions, raw["position_ids"])


def _prefill_mask(raw: Fixture) -> tuple[torch.Tensor, list[int]]:
    positions = torch.arange(len(raw["mask"]))
    bias = block_causal(positions.unsqueeze(0), raw["block_length"], torch.float32)
    return bias[0, 0] == 0, positions.tolist()


def _verify_mask(raw: Fixture) -> tuple[torch.Tensor, list[int]]:
    """Our pack has mask copies of known positions too, which nobody sees; the official one leaves them out."""
    known, prefix, block = raw["leftover"], raw["cached_prefix"], raw["block_length"]
    step = _steps([KNOWN] * known + raw["step_map"])
    equal("query_tokens", ["prompt"] * known + ["mask" if s < 0 else "draft" for s in raw["step_map"]]
          + ["mask"] * len(raw["step_map"]), raw["query_tokens"])  # fmt: skip
    kept = list(range(block)) + list(range(block + known, 2 * block))
    allowed = rules.pack_mask(step)[0]
    equal("idle mask copies seen", bool(allowed[kept][:, block : block + known].any()), False)
    among = allowed[kept][:, kept]
    positions = list(range(prefix, prefix + block)) + list(range(prefix + known, prefix + block))
    return torch.cat([torch.ones(len(kept), prefix, dtype=torch.bool), among], 1), positions


def _row_mask(raw: Fixture) -> tuple[torch.Tensor, list[int]]:
    """Our rows put all D copies before all M copies; the official layout alternates by block."""
    block, blocks = raw["block_length"], len(raw["step_maps"])
    group = [-1] * raw["prompt_len"]
    for number, length in enumerate(raw["accepted_block_lengths"]):
        group += [number] * length
    first, width = len(group), block * blocks
    step = _steps([s for one in raw["step_maps"] for s in one])
    whole = torch.tensor([group + [-1] * width])
    allowed = rules.row_mask(step, whole, torch.tensor([first]), block)[0]
    order = list(range(first))
    positions = list(range(first))
    for number in range(blocks):
        d = [first + number * block + i for i in range(block)]
        order += d + [at + width for at in d]
        positions += d + (d if raw["share_mask_position"] else [at + width for at in d])
    blocks_of = group + [max(group, default=-1) + 1 + number for number in range(blocks) for _ in range(2 * block)]
    equal("block_ids", blocks_of, raw["block_ids"])
    last = raw["denoising_steps"] + 1
    labels = [int(g >= 0) for g in group]
    for one in raw["step_maps"]:
        labels += [s + 1 for s in one] + [last] * block
    equal("token_labels", labels, raw["token_labels"])
    return allowed[order][:, order], positions


def _steps(step_map: list[int]) -> torch.Tensor:
    """-1 is the official sign of a position never drafted; KNOWN shares that number and stands in front of the map."""
    known = next((at for at, s in enumerate(step_map) if s != KNOWN), len(step_map))
    return torch.tensor([step_map[:known] + [NEVER if s < 0 else s for s in step_map[known:]]])


ACCEPTANCE_FIELDS = {
    "id", "method", "source", "name", "draft_ids", "draft_probs", "target_probs", "uniforms", "step_map", "order",
    "mrs", "greedy_match",
}  # fmt: skip


def check_acceptance(raw: Fixture) -> None:
    """Both acceptance rules on given probabilities and uniforms. Raises Mismatch."""
    _know(raw, ACCEPTANCE_FIELDS)
    if raw["order"] != "position":
        raise Mismatch(f"order {raw['order']!r} is not offered")
    tokens, p, q = (torch.tensor([raw[name]]) for name in ("draft_ids", "draft_probs", "target_probs"))
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    best = q.argmax(-1)
    accepted, bonus = rules.leading(tokens == best, everywhere)
    final = torch.where(bonus, best, tokens)[accepted | bonus].tolist()
    ours = {
        "n_accepted": int(accepted.sum()),
        "final_ids": final,
        "bonus": best[bonus].tolist()[0] if bonus.any() else None,
    }
    equal("greedy_match", ours, raw["greedy_match"])
    _check_mrs(raw, tokens, p, q, everywhere)


def _check_mrs(raw: Fixture, tokens, p, q, everywhere) -> None:
    possible = p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) > 0
    uniforms = iter(raw["uniforms"])  # none is drawn where the draft could not have drawn its token
    point = torch.tensor([[next(uniforms) if yes else 1.0 for yes in possible[0].tolist()]])
    accepted, bonus = rules.leading(rules.mrs_accepts(tokens, p, q, point), everywhere)
    n, rejected = int(accepted.sum()), bool(bonus.any())
    expected = dict(raw["mrs"])
    distribution = expected.pop("replacement_distribution")
    equal("mrs", {
        "n_accepted": n, "accepted_ids": tokens[accepted].tolist(), "rejected": rejected,
        "uniforms_used": int((possible & (accepted | bonus)).sum()), "returned_len": n + rejected,
    }, expected)  # fmt: skip
    if not rejected:
        equal("mrs.replacement_distribution", None, distribution)
        return
    ours = rules.mrs_replacement(tokens[bonus], p[bonus], q[bonus])[0]
    gap = (ours - torch.tensor(distribution)).abs().max().item()
    if not gap < 2e-6:
        raise Mismatch(f"mrs.replacement_distribution differs by {gap:.1e}")


def _know(raw: Fixture, fields: set[str]) -> None:
    for stranger in sorted(set(raw) - fields):
        raise Mismatch(f"unknown field {stranger}")
