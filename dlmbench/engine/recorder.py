"""Traces: what every step revealed, took back and cost, kept only when somebody asked for it.

Recording reads the device after each step; traced runs are never timed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dlmbench.backbone.counter import LogEntry
from dlmbench.decoders.base import Decision, Networks, View
from dlmbench.engine.canvas import replacements
from dlmbench.engine.request import State, TracedStep


class Recorder:
    """Steps of each row: {"block", "positions", "tokens", "remasked", "forwards", "extra", "scores"}.

    Positions stand in the order that the decision names, ascending otherwise. A step that rewrote tokens has "replaced"
    as well: {"positions", "tokens"}.

    `scores` are those of the masked positions as the decision saw them: proposed token, confidence, log-odds and the
    distance of the best logit to the second best.
    """

    def __init__(self, rows: int, on_step: Callable[[TracedStep], None] | None = None):
        self.steps: list[list[TracedStep]] = [[] for _ in range(rows)]
        self.on_step = on_step

    def networks(self, nets: Networks) -> Networks:
        """The networks as the decoder is to see them."""
        return nets

    def begin(self, row: int) -> None:
        self.steps[row] = []

    def step(
        self, view: View, decision: Decision, log: list[LogEntry], filled: Tensor | None = None,
        moved: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Note what a decision did to every live row; prefill forwards are in the counts, not in a trace.

        `filled` [R, capacity] holds the EOS that filled a position after this step, `moved` [R, capacity] what stands
        where the row has grown or shifted, as if it had been rewritten; -1 elsewhere.
        """
        reveal, replaced = decision.reveal & view.masked, replacements(view, decision)
        for row, live in enumerate(view.live.tolist()):
            if not live:
                continue
            chosen = reveal[row].nonzero().squeeze(1)
            if decision.order is not None:
                chosen = chosen[decision.order[row, chosen].argsort(stable=True)]
            revealed = dict(zip(view.positions[row, chosen].tolist(), decision.tokens[row, chosen].tolist()))
            if filled is not None:
                after = (filled[row] >= 0).nonzero().squeeze(1)
                revealed.update(zip(after.tolist(), filled[row, after].tolist()))
                revealed = dict(sorted(revealed.items()))
            remasked = []
            if decision.remask is not None:
                remasked = view.positions[row, decision.remask[row] & ~view.masked[row] & view.own[row]].tolist()
            entry: TracedStep = {
                "block": int(view.start[row]) // view.block_length,
                "positions": list(revealed),
                "tokens": list(revealed.values()),
                "remasked": remasked,
                "forwards": [
                    {"role": key.role, "kind": key.kind, "query_tokens": int(queries[row])}
                    for key, active, queries in log
                    if bool(active[row])
                ],
                "extra": {k: v[row].tolist() for k, v in (decision.extra or {}).items()},
                "scores": _scores(view, row),
            }
            if decision.replace is not None:
                at = replaced[row]
                entry["replaced"] = {
                    "positions": view.positions[row, at].tolist(), "tokens": decision.tokens[row, at].tolist(),
                }  # fmt: skip
            if moved is not None:
                _note_moves(entry, moved[row].tolist(), view.mask_id)
            self.steps[row].append(entry)
            if self.on_step:
                self.on_step({"row": row, **entry})

    def finish(self, row: int) -> list[TracedStep]:
        return self.steps[row]

    def states_of(self, row: int) -> list[State] | None:
        """Those of a recorder that keeps them (`dlmbench.engine.states`)."""
        return None

    def keep_rows(self, rows: list[int]) -> None:
        self.steps = [self.steps[row] for row in rows]


def _note_moves(entry: TracedStep, moved: list[int], mask_id: int) -> None:
    """What a step revealed and moved away is a mask again, and rewritten where it came to lie."""
    emptied = [position for position, token in enumerate(moved) if token == mask_id]
    shown = [(p, t) for p, t in zip(entry["positions"], entry["tokens"]) if moved[p] < 0]
    entry["remasked"] = sorted({*entry["remasked"], *emptied} - set(entry["positions"]))
    entry["positions"], entry["tokens"] = [p for p, _ in shown], [t for _, t in shown]
    written = [(position, token) for position, token in enumerate(moved) if token not in (-1, mask_id)]
    if written:
        entry["replaced"] = {"positions": [p for p, _ in written], "tokens": [t for _, t in written]}


def _scores(view: View, row: int) -> dict[str, list]:
    """Scores of one row's masked positions; empty for decoders that do not ask for candidates."""
    best = view.asked.traced
    if best is None:
        return {}
    masked = view.masked[row]
    top = best.logits[row, masked].topk(2, -1).values
    return {
        "positions": view.positions[row, masked].tolist(),
        "tokens": best.tokens[row, masked].tolist(),
        "confidence": best.confidence[row, masked].tolist(),
        "log_odds": best.log_odds[row, masked].tolist(),
        "lead": (top[:, 0] - top[:, 1]).tolist(),
    }
