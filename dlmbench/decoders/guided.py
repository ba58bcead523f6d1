"""`guided`: the diffusion model proposes a token for every masked position, a small autoregressive model says how many
of them to keep (Guided Diffusion of FlashDLM, arXiv 2505.21467; docs/methods/guided.md).

A step is one forward of the target and at least one of the guide, which reads the last known token and the proposals
left to right. The longest prefix of proposals that the guide agrees with is committed, at least the first one. The
guide never supplies a token, so the text is the diffusion model's own; it is written strictly from left to right, and
it is lossless for neither model.

Proposals reach to the end of the active block; with a block as long as the answer this is the published Dream method.
The guide's cache needs no care of its own: a pack's keys lie in the slots of their positions, so what was committed
stays and what was refused is overwritten by the next step.

End tokens: several ids may end a text (the target's and the guide's). They count as one token on both sides, so a guide
that wants to stop with its own end token agrees with a target that stops with another.

Left out: the official branches `aggressive` and `original`, and its three caches that lose rows; temperature (proposals
are always the argmax).

Axes: R rows, W positions of the view, C proposals of one guide forward, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.network import Network
from dlmbench.decoders.base import Decision, Evidence, Marker, Networks, RoundDecoder, Traits, View, option
from dlmbench.decoders.predict import Sampling
from dlmbench.errors import RequestError

RULES = ("top1", "topk", "topk_relative", "probability", "stochastic")


@dataclass(frozen=True)
class GuidedConfig:
    match: str = option(
        "top1",
        "when the guide agrees: the proposal is its best token, among its `top` best, that and at least `relative` "
        "times as probable as the best, more probable than `eta`, or the target is surer than `tau` times the guide",
        choices=RULES,
    )  # fmt: skip
    top: int = option(5, "how many of the guide's best tokens agree (paper: 5 on LLaDA, 2 in its appendix)")
    relative: float = option(0.5, "topk_relative: least share of the best token's probability")
    eta: float = option(0.05, "probability: what the guide must give the proposal")
    tau: float = option(0.5, "stochastic: the target's probability must exceed tau times the guide's best (paper: 0.5)")
    chunk: int = option(32, "proposals a guide forward reads; the next only if all agreed; 0: all (official: 32)")

    def __post_init__(self):
        if self.top < 1 or self.chunk < 0:
            raise ValueError("top must be at least 1 and chunk at least 0")


def agrees(config: GuidedConfig, tokens: Tensor, logits: Tensor, sure: Tensor) -> Tensor:
    """Does the guide agree? tokens [...] proposals, logits [...,V] the guide's, sure [...] the target's probability of
    its proposal -> bool [...]."""
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    best = logits.amax(-1)
    if config.match == "top1":
        return tokens == logits.argmax(-1)
    among = (logits > chosen.unsqueeze(-1)).sum(-1) < config.top
    if config.match == "topk":
        return among
    if config.match == "topk_relative":
        return among & ((chosen - best).exp() >= config.relative)
    total = logits.logsumexp(-1)
    if config.match == "probability":
        return (chosen - total).exp() > config.eta
    return sure > config.tau * (best - total).exp()


class Guided(RoundDecoder):
    name = "guided"
    group = "speculation"
    evidence = Evidence("official trace", ("guided",))
    Config = GuidedConfig
    roles = ("target", "guide")
    attention = ("full",)
    caches = ("none", "prompt", "freecache")

    @classmethod
    def objection(cls, config: GuidedConfig, sampling: Sampling) -> str | None:
        if sampling.temperature == 0 and not sampling.top_k and sampling.top_p == 1:
            return None
        return "Method guided proposes the target's best tokens only: leave out --temperature, --top-k and --top-p."

    @classmethod
    def on_task(cls, config: GuidedConfig, attention: str | None, fixed: Marker | None, offered: bool) -> GuidedConfig:
        if fixed:
            raise RequestError(
                "Method guided writes strictly from left to right, so no answer marker can stand ahead of it: leave "
                "sampling.constraint out."
            )
        return config

    def bind(self, nets: Networks, block_length: int) -> Traits:
        target, guide = nets["target"].config, nets["guide"].config
        if guide.attention != "causal":
            raise RequestError(
                f"The guide reads left to right, and the one given has {guide.attention} attention. Give an "
                "autoregressive checkpoint with --guide."
            )
        device = nets["target"].device
        ends = sorted(token for token in {*target.eos_ids, *guide.eos_ids} if token < guide.vocab_size)
        self.ends = torch.tensor(ends, dtype=torch.long, device=device)
        self.target_ends = torch.tensor(target.eos_ids or (-1,), device=device)
        self.block_length, self.mask_id = block_length, target.mask_id
        self.vocabulary = guide.vocab_size
        # what to launch follows from how far each row's guide has read, so flags are read at once
        return Traits(lag=0, extra_slots=block_length + 1)

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, dtype=torch.long, device=device)

        return {
            "proposals": zeros(self.block_length),
            "sure": torch.zeros(rows, self.block_length, device=device),  # the target's probability of each
            "agreed": zeros(),  # proposals of this step that the guide has agreed with
            "reading": torch.zeros(rows, dtype=torch.bool, device=device),  # the guide goes on with the next chunk
            "proposed": zeros(),
            "accepted": zeros(self.block_length + 1),
        }

    def round(self, view: View, nets: Networks) -> Decision:
        state = view.state
        reading = state["reading"]
        propose, active = self._launches(view, reading)
        if propose:
            self._propose(view, nets["target"], ~reading & view.live)
        masked = view.masked.sum(1)
        agree, chunk = self._consult(view, nets["guide"], masked, active)
        agreed = state["agreed"] + agree
        further = active & (agree == chunk) & (agreed < masked)
        done = active & ~further
        state["agreed"] = torch.where(active, torch.where(done, 0, agreed), state["agreed"])
        state["reading"] = torch.where(active, further, reading)
        self._report(state, masked, agreed, done)
        return self._commit(view, masked, agreed, done, further)

    def _launches(self, view: View, reading: Tensor) -> tuple[bool, Tensor]:
        """(does the target propose now, rows [R] that the guide serves).

        Rows whose guide reads on go first and the others wait, because the target's forward costs nearly the same for
        one row as for all.
        """
        if view.host_rows is None:  # the host does not know: both, each masked by the rows that need it
            return True, view.live
        if any(about.hint for about in view.host_rows if about):
            return False, view.live & reading
        return True, view.live

    def _propose(self, view: View, net: Network, rows: Tensor) -> None:
        best = view.candidates(net.denoise(view, active=rows).logits, traced=False)
        rows = rows.unsqueeze(1)
        view.state["proposals"] = torch.where(rows, best.tokens, view.state["proposals"])
        view.state["sure"] = torch.where(rows, best.confidence, view.state["sure"])

    def _consult(self, view: View, net: Network, masked: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """One forward of the guide: (how many of this chunk's proposals it agrees with [R], proposals in it [R]).

        The chunk's first input is the token before its first proposal; the last proposal itself is fed only where one
        forward reads everything, as the official code does.
        """
        state, chunk = view.state, self.config.chunk
        first = view.valid.sum(1) - masked + state["agreed"]  # of the chunk's proposals, as an index into the view
        number = masked - state["agreed"]
        if chunk:
            number = number.clamp_max(chunk)
        width = min(chunk, self.block_length) if chunk else self.block_length
        index = first.unsqueeze(1) + torch.arange(width, device=first.device)  # [R,C]
        inside = index < (first + number).unsqueeze(1)
        index = index.clamp_max(self.block_length - 1)
        tokens = state["proposals"].gather(1, index)
        base = view.start + first - 1  # position of the chunk's first input
        text = torch.where(view.masked, state["proposals"], view.tokens)
        before = torch.where(first > 0, text.gather(1, (first - 1).clamp_min(0).unsqueeze(1)).squeeze(1),
                             net.canvas.gather(1, base.clamp_min(0).unsqueeze(1)).squeeze(1))  # fmt: skip
        ids = torch.cat([before.unsqueeze(1), tokens], 1)[:, : width + (not chunk)]
        offset = torch.arange(ids.shape[1], device=ids.device)
        positions = (base.unsqueeze(1) + offset).minimum((view.ends - 1).unsqueeze(1))
        causal = (offset.unsqueeze(0) <= offset.unsqueeze(1)).expand(ids.shape[0], -1, -1)
        forward = net.packed(
            view, ids.clamp_max(self.vocabulary - 1), positions, causal, project=slice(0, width), active=active,
            used=number + (not chunk), first=base,
        )  # fmt: skip
        good = self._agrees(tokens, forward.logits, state["sure"].gather(1, index)) & inside
        return good.long().cumprod(1).sum(1), number

    def _agrees(self, tokens: Tensor, logits: Tensor, sure: Tensor) -> Tensor:
        """`agrees` with all end tokens taken as one. tokens and sure [R,C], logits [R,C,V] -> bool [R,C]."""
        logits = logits.float()
        known = tokens < self.vocabulary  # the target may pad its vocabulary further than the guide
        ends = self.ends
        if ends.numel() > 1:
            together = logits[..., ends].logsumexp(-1)
            logits = logits.clone()
            logits[..., ends] = float("-inf")
            logits[..., ends[0]] = together
            tokens = torch.where(torch.isin(tokens, ends), ends[0], tokens)
        return agrees(self.config, tokens.clamp_max(self.vocabulary - 1), logits, sure) & known

    def _report(self, state: dict[str, Tensor], masked: Tensor, agreed: Tensor, done: Tensor) -> None:
        state["proposed"] = state["proposed"] + masked * done
        state["accepted"] = state["accepted"].scatter_add(1, agreed.unsqueeze(1), done.long().unsqueeze(1))

    def _commit(self, view: View, masked: Tensor, agreed: Tensor, done: Tensor, further: Tensor) -> Decision:
        """Commit the agreed prefix, at least one token; an EOS among them fills the rest and ends the row."""
        tokens = view.state["proposals"]
        order = view.masked.cumsum(1)  # 1, 2, ... over the masked positions
        reveal = view.masked & (order <= agreed.clamp_min(1).unsqueeze(1)) & done.unsqueeze(1)
        ends = reveal & torch.isin(tokens, self.target_ends)
        ended = ends.any(1)
        first = ends & (ends.cumsum(1) == 1)
        eos = (tokens * first).sum(1, keepdim=True)
        behind = view.masked & (ends.cumsum(1) > 0) & ~first
        tokens = torch.where(behind, eos, tokens)
        extra = {"agreed": agreed} if view.tracing else None
        return Decision(
            tokens, reveal | behind, finish=ended, fallback=done & (agreed == 0), planned_empty=~done,
            skipped=~(done | further), host_hint=further.long(), extra=extra,
        )  # fmt: skip

    def answer(self, state: dict[str, Tensor], row: int, ids: list[int]) -> list[int]:
        """Blocks behind an EOS were never opened: they are EOS too."""
        if self.mask_id not in ids:
            return ids
        at = ids.index(self.mask_id)
        return ids[:at] + [ids[at - 1]] * (len(ids) - at)
