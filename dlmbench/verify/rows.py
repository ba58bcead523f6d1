"""What the adapters of full-attention areas share: plain forwards, running a case's rows, the official view of a batch.

Official code pads prompts on the left and moves a whole batch from block to block together; here every row starts at
position 0 and goes its own way. `CaseRun` translates: positions count the padding again, and a row that has finished a
block before the others waits for them with empty steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dlmbench.backbone import load_checkpoint
from dlmbench.backbone.bidirectional import Bidirectional, CachePolicy
from dlmbench.backbone.descriptor import Descriptor, Told
from dlmbench.decoders.base import Decoder
from dlmbench.decoders.predict import Sampling
from dlmbench.engine import Engine, Generation, Request
from dlmbench.engine.request import TracedStep
from dlmbench.verify.cases import Case, Mismatch, equal, traced

FIELDS = {
    "id", "family", "weights", "method", "params", "source", "batch", "seeded", "note", "prompt_ids", "attention_mask",
    "margins", "diagnostics", "expected",
}  # fmt: skip
FORWARD_TOLERANCE = 1e-3  # of logits and of their log-sum-exp, as the areas' pages say


@dataclass(frozen=True)
class CaseRun:
    """The generations of a case's rows, and the padding to the left of each prompt."""

    rows: list[Generation]
    pads: list[int]
    prompts: list[int]  # lengths, without padding

    @property
    def steps(self) -> list[list[TracedStep | None]]:
        """Trace steps of all rows, call by call; waiting rows have None."""
        blocks = [_by_block(traced(row)) for row in self.rows]
        calls: list[list[TracedStep | None]] = []
        for block in range(max(map(len, blocks))):
            parts = [row[block] if block < len(row) else [] for row in blocks]
            longest = max(map(len, parts))
            calls += [[part[i] if i < len(part) else None for part in parts] for i in range(longest)]
        return calls

    def official_steps(self) -> list[dict]:
        """{"positions", "tokens"} of every call; lists of lists for a batch."""
        result = []
        for call in self.steps:
            positions = [[p + pad for p in step["positions"]] if step else [] for step, pad in zip(call, self.pads)]
            tokens = [step["tokens"] if step else [] for step in call]
            one = len(self.rows) == 1
            result.append({"positions": positions[0] if one else positions, "tokens": tokens[0] if one else tokens})
        return result

    def ids(self) -> list:
        """Answers; a list of rows for a batch."""
        answers = [row.raw_ids for row in self.rows]
        return answers[0] if len(answers) == 1 else answers

    def queries(self) -> list[int]:
        """Query tokens of every call, over all rows; a waiting row is carried along as official code does."""
        widths = []
        for call in self.steps:
            own = [sum(f["query_tokens"] for f in step["forwards"]) for step in call if step]
            widths.append(max(own) * len(self.rows))
        return widths


def _by_block(trace: list[TracedStep]) -> list[list[TracedStep]]:
    blocks: dict[int, list[TracedStep]] = {}
    for step in trace:
        blocks.setdefault(step["block"], []).append(step)
    return [blocks[number] for number in sorted(blocks)]


def prompts(case: Case) -> tuple[list[list[int]], list[int]]:
    """The case's prompts without padding, and how much each had on its left."""
    ids, mask = case.raw["prompt_ids"], case.raw.get("attention_mask")
    if not isinstance(ids[0], list):
        ids, mask = [ids], mask and [mask]
    equal("batch", len(ids), case.raw.get("batch", 1))
    pads = [row.count(0) for row in mask] if mask else [0] * len(ids)
    return [row[pad:] for row, pad in zip(ids, pads)], pads


def run(
    case: Case,
    decoder: Decoder,
    block_length: int,
    *,
    policy: CachePolicy | None = None,
    guidance: float = 0.0,
    sampling: Sampling | None = None,
    fixed: tuple[tuple[int, int], ...] = (),
    eos_id: int | None = None,
    fill_after_eos: bool = False,
    gen_length: int | None = None,
    device: str = "cpu",
) -> CaseRun:
    """Decode all rows of a case together; `gen_length` tokens each, where the case does not name them so."""
    params = case.params
    model = load_checkpoint(case.weights(), device, told=case.told("full"))
    if eos_id is not None:
        model.config = replace(model.config, eos_ids=(eos_id,))
    network = Bidirectional("target", model, block_length, policy, guidance)
    ids, pads = prompts(case)
    engine = Engine({"target": network}, decoder, sampling=sampling, batch_size=len(ids), fill_after_eos=fill_after_eos)
    budget = gen_length or params["gen_length"]
    requests = [Request(str(i), tuple(row), budget, fixed=fixed) for i, row in enumerate(ids)]
    return CaseRun(engine.generate(requests, trace=True), pads, [len(row) for row in ids])


def compare(case: Case, batch: CaseRun) -> None:
    """Ids, calls and steps, which every area has. Raises Mismatch."""
    equal("ids", batch.ids(), case.expected["ids"])
    equal("nfe", len(batch.steps), case.expected["nfe"])
    equal("steps", batch.official_steps(), case.expected["steps"])


def row_forwards(batch: CaseRun) -> float:
    """Rows that went through the network, from the tokens it worked on: a guided call has both halves in them."""
    total = 0.0
    for row, prompt in zip(batch.rows, batch.prompts):
        length = prompt + len(row.raw_ids)
        total += sum(kind["query_tokens"] for kind in row.counts["target"].values()) // length
    return total


def blocks_and_steps(params: dict, block_length: int) -> int:
    """Steps a block, from the total. Raises Mismatch where the official code would stop with an error."""
    blocks, rest = divmod(params["gen_length"], block_length)
    if rest or params["steps"] % blocks:
        raise Mismatch("gen_length is no multiple of the block, or steps none of the blocks")
    return params["steps"] // blocks


def check(case: Case, device: str = "cpu") -> None:
    """Best ids, their logits and the log-sum-exp at the listed positions; Dream's are those before the shift."""
    case.know(FIELDS, {"shifted"}, {"vocab", "rows"})
    model = load_checkpoint(case.weights(), device, told=Told(Descriptor(attention="full", mask_id=0)))
    equal("vocab", model.config.vocab_size, case.expected["vocab"])
    if case.params.get("shifted"):
        raise Mismatch("forwards are compared before the shift, this case holds shifted ones")
    (ids,), (pad,) = prompts(case)
    with torch.inference_mode():
        logits = model.project(model.hidden(torch.tensor([ids], device=device)))[0].cpu()
    for row in case.expected["rows"]:
        ours = logits[row["position"] - pad]
        top = ours.topk(len(row["top_ids"]))
        equal(f"top ids at {row['position']}", top.indices.tolist(), row["top_ids"])
        expected = torch.tensor([*row["top_logits"], row["logsumexp"]])
        gap = (torch.cat([top.values, ours.logsumexp(0, keepdim=True)]) - expected).abs().max().item()
        if not gap <= FORWARD_TOLERANCE:
            raise Mismatch(f"logits at {row['position']} differ by {gap:.2e}, allowed {FORWARD_TOLERANCE:.0e}")
