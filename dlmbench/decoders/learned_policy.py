"""`learned_policy`: a small trained network decides which positions to unmask (arXiv 2512.09106;
docs/methods/learned_policy.md).

Tokens are the backbone's argmax; the policy reads their probabilities at all positions, also committed ones, which of
them are masked, and the share of the answer's length that was spent in forwards. Where it wants nothing unmasked, the
position of its largest logit is (a guard). ``greedy`` unmasks where the probability of doing so is above one half and
is what tables that must be reproducible use; ``bernoulli-argmax`` draws, one uniform a position from the row's own
seed, so that a text does not depend on the batch.

Left out: the training mode without a fall-back, and the DPLS action law for decoding (it decides the same).

Axes: R rows, W positions of the answer, B block length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dlmbench.backbone.network import Network
from dlmbench.decoders.base import Decision, Evidence, Networks, RoundDecoder, Traits, View, option, top_n
from dlmbench.decoders.predict import Sampling, uniform
from dlmbench.heads.policy import PolicyConfig, PolicyNetwork, load_policy
from dlmbench.heads.policy_network import PolicyHead


@dataclass(frozen=True)
class LearnedPolicyConfig:
    mode: str = option("greedy", "how logits become decisions", choices=("greedy", "bernoulli-argmax"))
    policy_temperature: float = option(
        1.0, "divides the logits of bernoulli-argmax (evaluation: 0.5 at block 32, 1.0 without blocks)"
    )
    beta: float = option(1.0, "factor on the probability of unmasking: below 1 slower and safer, above 1 faster")
    full_context: bool = option(True, "the policy sees the whole answer (all published runs), else the active block")

    def __post_init__(self):
        if self.policy_temperature <= 0 or self.beta <= 0:
            raise ValueError("policy_temperature and beta must be above 0")


class LearnedPolicy(RoundDecoder):
    name = "learned_policy"
    group = "trained"
    evidence = Evidence("official trace", ("learned_policy",))
    Config = LearnedPolicyConfig
    roles = ("target", "head")
    attention = ("full",)
    caches = ("none",)

    @classmethod
    def objection(cls, config: LearnedPolicyConfig, sampling: Sampling) -> str | None:
        if not sampling.greedy:
            return (
                f"learned_policy reads probabilities of greedy tokens and the temperature is {sampling.temperature}: "
                "use --temperature 0; its own draws are learned_policy.mode=bernoulli-argmax."
            )
        return None

    @classmethod
    def head_network(cls, target: Network, folder: Path | None, weights: str | None = None) -> Network:
        if folder is not None:
            return PolicyHead(load_policy(folder, target.device), target.block_length)
        tiny = PolicyNetwork(PolicyConfig(hidden_size=16, intermediate_size=32, time_size=16)).init_random()
        return PolicyHead(tiny.to(target.device).requires_grad_(False).eval(), target.block_length)

    def bind(self, nets: Networks, block_length: int) -> Traits:
        return Traits(scope="answer")

    def round(self, view: View, nets: Networks) -> Decision:
        best = view.candidates(nets["target"].denoise(view).logits)
        logits = self._logits(view, best.confidence, nets["head"])
        wanted = self._wanted(view, logits) & view.eligible
        none = ~wanted.any(1)
        reveal = torch.where(none.unsqueeze(1), top_n(logits, view.eligible, 1), wanted)
        extra = {"policy": logits} if view.tracing else None
        return Decision(best.tokens, reveal, fallback=none, extra=extra)

    def _logits(self, view: View, confidence: Tensor, head: PolicyHead) -> Tensor:
        """The policy's logits [R,W]; zero where it was not asked."""
        length = view.ends - view.prompt_length
        time = view.total_steps / length
        if self.config.full_context:
            return head.logits(view, confidence, view.masked, length, time)
        first = view.start - view.prompt_length
        at = first.unsqueeze(1) + torch.arange(view.block_length, device=first.device)
        shown = at.clamp_max(view.tokens.shape[1] - 1)
        inside = (length - first).clamp(0, view.block_length)
        logits = head.logits(view, confidence.gather(1, shown), view.masked.gather(1, shown), inside, time)
        spare = torch.where(at < length.unsqueeze(1), at, view.tokens.shape[1])  # a last block may be short
        whole = logits.new_zeros(logits.shape[0], view.tokens.shape[1] + 1)
        return whole.scatter(1, spare, logits)[:, :-1]

    def _wanted(self, view: View, logits: Tensor) -> Tensor:
        """Positions [R,W] that the policy wants unmasked now."""
        beta = self.config.beta
        if self.config.mode == "greedy":  # beta * sigmoid(z) > 1/2, asked of z itself
            return logits > -math.log(2 * beta - 1) if beta > 0.5 else torch.zeros_like(view.masked)
        chance = (beta * torch.sigmoid(logits / self.config.policy_temperature)).clamp_max(1.0)
        return uniform(view.seed, view.total_steps, view.positions) < chance
