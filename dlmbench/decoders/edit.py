"""`edit`: fill masks by confidence and rewrite what was filled before, in the same forward (token editing, LLaDA2.1,
arXiv 2602.08676; SGLang calls it JointThreshold).

Masks whose proposal is surer than `threshold` are filled, the best `least` of them where fewer are. Tokens of the
block's own that the network would choose otherwise by now, surer than `edit_threshold`, are rewritten. A full block is
looked at again until a forward rewrites nothing, `max_post_steps` times at most: tokens may go on changing for ever.

Left out: the uniform noise of the scheduler in diffusers, and its step quota (`threshold` has it as `steps`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.decoders.base import Decision, Evidence, Networks, StepDecoder, Traits, View, option, top_n


@dataclass(frozen=True)
class EditConfig:
    threshold: float = option(
        0.95,
        "confidence that a mask's proposal must pass (release 0.95; quality mode 0.7, speed mode 0.5)",
        threshold=True,
        unit="confidence",
    )
    edit_threshold: float = option(
        0.9, "confidence that a proposal must pass to replace another token (release 0.9; quality 0.5, speed 0)"
    )
    zero: str = option(
        "all",
        "what an edit_threshold of 0 or less means: all rewrites whatever is proposed otherwise (the release, SGLang), "
        "off turns editing off (the scheduler in diffusers)",
        choices=("all", "off"),
    )
    max_post_steps: int = option(16, "forwards over a block that is full already, at most")
    least: int = option(1, "masks filled by a forward at least (the release's num_to_transfer)")
    penalty: float = option(
        0.0, "taken from the logit of the token to the left, inside a block (SGLang's penalty_lambda)"
    )
    stop: str = option(
        "eos",
        "eos: a row ends with the block that holds an EOS (the modes of LLaDA2.1's evaluation); budget: all of the "
        "budget is decoded and then cut (the release's default)",
        choices=("eos", "budget"),
    )

    def __post_init__(self):
        if self.max_post_steps < 0 or self.least < 1:
            raise ValueError("max_post_steps must be at least 0 and least at least 1")

    @property
    def edits(self) -> bool:
        """Is anything rewritten at all?"""
        return self.zero == "all" or self.edit_threshold > 0


class Edit(StepDecoder):
    name = "edit"
    group = "remasking"
    evidence = Evidence("official trace", ("llada2",))
    Config = EditConfig
    needs_training = True
    equalities = (
        "edit_threshold=0,zero=off == threshold:tau=0.95",
        "edit_threshold=1,max_post_steps=0 == threshold:tau=0.95",
        "threshold=1.1,edit_threshold=1,max_post_steps=0 == static:k=1",
    )

    def bind(self, nets: Networks, block_length: int) -> Traits:
        return Traits(ends_rows=self.config.stop == "budget")

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        return {"post": torch.zeros(rows, dtype=torch.long, device=device)}

    def round(self, view: View, nets: Networks) -> Decision:
        config, full = self.config, ~view.masked.any(1)
        forward = nets["target"].denoise(view, kind={"denoise": ~full, "edit": full})
        best = view.candidates(self._penalised(view, forward.logits))
        fill = (best.confidence > config.threshold) & view.masked
        least = top_n(best.log_odds, view.masked, config.least)
        short = fill.sum(1) < least.sum(1)
        fill = torch.where(short.unsqueeze(1), least, fill)
        if not config.edits:
            return Decision(best.tokens, fill, fallback=short)
        surer = (best.confidence > config.edit_threshold) | (config.edit_threshold <= 0)
        edit = surer & view.own & ~view.masked & (best.tokens != view.tokens)
        post = torch.where(view.fresh, 0, view.state["post"]) + full
        view.state["post"] = post
        settled = full & ~edit.any(1)
        goes_on = (post < config.max_post_steps) & ~settled
        return Decision(best.tokens, fill, replace=edit, fallback=short, keep_block_open=goes_on, planned_empty=full)

    def _penalised(self, view: View, logits: Tensor) -> Tensor:
        """Logits [R,W,V] with `penalty` taken from each position's left neighbour, but for the block's first one."""
        if not self.config.penalty:
            return logits
        left = view.tokens.roll(1, 1).unsqueeze(-1)
        taken = torch.full_like(left, -self.config.penalty, dtype=logits.dtype)
        taken[:, 0] = 0
        return logits.scatter_add(-1, left, taken)
