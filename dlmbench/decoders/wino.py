"""`wino`: reveal widely, take back what a second look does not support (WINO, arXiv 2507.18578;
docs/methods/wino.md).

Every forward carries, beside the row, one mask token for each position of the block. Such a shadow sees everything but
the token at its own position, so it says how probable that token is given all others. Drafting is bold (`tau`), and
positions whose token the shadow finds less probable than `verify` become masks again. Fewer are taken back than the
step before had drafted, so every block ends. Tokens drafted in a forward are looked at from the next one on.

In a block-causal block the shadows ride in the same packed forward, seeing the prefix and the block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.decoders.base import Decision, Evidence, Networks, RoundDecoder, Traits, View, option, top_n

FIRST_LIMIT = 30  # the release lets the first verification of a block take back as if 30 had been drafted


@dataclass(frozen=True)
class WinoConfig:
    tau: float = option(
        0.6,
        "confidence that a draft must pass (LLaDA GSM8K 0.6, MATH and HumanEval 0.7, MBPP 0.8)",
        threshold=True,
        unit="confidence",
    )
    verify: float = option(0.9, "probability below which a shadow takes a token back (0.9 for all tasks)")
    share: float = option(0.7, "share of the masks that one forward may draft, within 5 to 20 positions")


class Wino(RoundDecoder):
    name = "wino"
    group = "remasking"
    evidence = Evidence("read only")
    Config = WinoConfig
    attention = ("full", "block_causal")
    caches = ("none",)
    guidable = False
    equalities = ("tau=1.1 == static:k=1",)

    def bind(self, nets: Networks, block_length: int) -> Traits:
        return Traits(extra_slots=block_length + 8)  # the shadows, behind a row that is padded to a multiple of 8

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        return {
            "drafted": torch.zeros(rows, width, dtype=torch.bool, device=device),
            "last": torch.full((rows,), FIRST_LIMIT, dtype=torch.long, device=device),
        }

    def round(self, view: View, nets: Networks) -> Decision:
        width = view.tokens.shape[1]
        drafted = view.state["drafted"] & ~view.fresh.unsqueeze(1)
        last = torch.where(view.fresh, FIRST_LIMIT, view.state["last"])
        masks = torch.full_like(view.tokens, view.mask_id)
        logits, shadows = nets["target"].beside(view, masks, view.positions, view.positions)
        best = view.candidates(logits)
        draft, fallback = self._draft(view, best)
        count = draft.sum(1)
        support = shadows.float().softmax(-1).gather(-1, view.tokens.unsqueeze(-1)).squeeze(-1)
        doubted = drafted & (support < self.config.verify) & (count > 1).unsqueeze(1)
        limit = torch.where(doubted.sum(1) >= last, last - 1, width)
        revoked = top_n(-support, doubted, limit)
        view.state["drafted"].copy_((drafted | draft) & ~revoked)
        view.state["last"].copy_(count)
        idle = revoked.sum(1) >= count  # a net loss, which the limit makes up for in the next step
        return Decision(
            best.tokens, draft, remask=revoked, fallback=fallback, planned_empty=idle, extra={"revoked": revoked.sum(1)}
        )

    def _draft(self, view: View, best) -> tuple[Tensor, Tensor]:
        """Positions [R,W] to reveal, and the rows [R] in which only the best one comes."""
        masks = view.eligible.sum(1)
        cap = (masks * self.config.share).long().clamp(5, 20)
        bold = (best.confidence > self.threshold) & view.eligible
        none = ~bold.any(1)
        wide = top_n(best.log_odds, bold, cap)
        return torch.where(none.unsqueeze(1), top_n(best.log_odds, view.eligible, 1), wide), none
