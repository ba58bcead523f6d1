"""`rcd`: the distribution of a position that stays masked becomes part of its input at the next step
(residual context diffusion, arXiv 2601.22954; docs/methods/rcd.md).

The prediction of a masked position is turned into a soft embedding (the mean of the token embeddings under it) and
mixed into the mask embedding of the same position, the more the less certain the prediction is. Which tokens are
revealed is the plain sampler's business: `threshold` or `static` decide exactly as they do without a residual, and with
``alpha=0`` this decoder is that sampler (a declared equality).

Block-causal models: the residual starts anew at every block; finished blocks are stored from plain embeddings.
Full attention: the residual covers the whole answer and is kept from block to block. A cold residual is none at the
first step; a warm one is made from the prediction of a reference network, once a block (block-causal) or once a row.

Left out: skipping the soft embedding in a block's last step, which only the host could decide.

Axes: R rows, W positions of the view, V vocabulary, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.network import Network
from dlmbench.decoders.base import Decision, Evidence, Networks, RoundDecoder, Traits, View, option
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.errors import RequestError

STRATEGIES = (
    "normalized_entropy", "inverse_entropy", "confidence", "inverse_confidence", "fixed", "full_replacement",
    "top1_token",
)  # fmt: skip
FIXED = 0.3  # weight of strategy ``fixed``


@dataclass(frozen=True)
class RCDConfig:
    tau: float = option(
        0.85, "confidence that a position must pass (SDAR runs: 0.85)", threshold=True, unit="confidence"
    )
    sampler: str = option("threshold", "the plain sampler that reveals", choices=("threshold", "static"))
    k: int = option(1, "tokens a step of sampler=static (LLaDA runs: 1)")
    steps: int = option(0, "denoising steps a block: fall-back schedule of threshold, schedule of static; 0: off")
    residual_init: str = option(
        "auto", "first residual: none (cold) or from --reference (warm); auto: cold for SDAR, warm for LLaDA",
        choices=("auto", "cold", "warm"),
    )  # fmt: skip
    residual_temperature: float = option(
        1.0, "temperature of the distribution that weighs the residual, and of nothing else (LLaDA runs: 0.92, 0.98)"
    )
    latent_strategy: str = option("normalized_entropy", "weight and content of the residual", choices=STRATEGIES)
    alpha: float = option(1.0, "factor on the weight; 0 switches the residual off")

    def __post_init__(self):
        if self.residual_temperature <= 0:
            raise ValueError("residual_temperature must be above 0")
        if not 0 <= self.alpha <= 1:
            raise ValueError("alpha must lie between 0 and 1")
        self.plain()  # the sampler checks its own options

    def plain(self, full: bool = False) -> Threshold | Static:
        """The sampler that decides; full attention divides a block as LLaDA does."""
        if self.sampler == "threshold":
            return Threshold(ThresholdConfig(tau=self.tau, steps=self.steps))
        schedule = "quota" if full and self.steps else "share"
        return Static(StaticConfig(k=self.k, steps=self.steps, schedule=schedule))

    @property
    def uses_threshold(self) -> bool:
        return self.sampler == "threshold"


def residual(
    logits: Tensor, embedding: Tensor, temperature: float = 1.0, strategy: str = "normalized_entropy"
) -> tuple[Tensor, Tensor]:
    """Weight and soft embedding of predictions (arXiv 2601.22954; docs/methods/rcd.md).

    logits [...,V], embedding [V,D] of the network whose input it will be -> (alpha [...] in [0,1], delta [...,D]).
    The temperature shapes the weight alone; V is the width of the logits, padding included.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    unscaled = logits.softmax(-1)
    if strategy == "top1_token":
        delta = embedding[logits.argmax(-1)]
    else:
        delta = (unscaled.to(embedding.dtype) @ embedding).to(embedding.dtype)
    scaled = logits if temperature == 1.0 else logits / temperature
    match strategy:
        case "normalized_entropy" | "top1_token":
            alpha = _normalized_entropy(scaled)
        case "inverse_entropy":
            alpha = 1 - _normalized_entropy(scaled)
        case "confidence":
            alpha = scaled.softmax(-1).amax(-1)
        case "inverse_confidence":
            alpha = 1 - scaled.softmax(-1).amax(-1)
        case "fixed":
            alpha = torch.full_like(logits[..., 0], FIXED)
        case "full_replacement":
            alpha = torch.ones_like(logits[..., 0])
        case _:
            raise ValueError(f"latent strategy {strategy!r} is none of {', '.join(STRATEGIES)}")
    return alpha, delta


def _normalized_entropy(logits: Tensor) -> Tensor:
    """Entropy over log V, as log-sum-exp minus the mean logit: no 0 log 0. [...,V] -> [...]"""
    shifted = logits - logits.amax(-1, keepdim=True)
    mass = shifted.exp()
    total = mass.sum(-1)
    entropy = total.log() - (mass * shifted.clamp_min(-1e30)).sum(-1) / total
    return (entropy / math.log(logits.shape[-1])).clamp(0, 1)


def mix(mask: Tensor, alpha: Tensor, delta: Tensor) -> Tensor:
    """Input of a masked position. mask [D] embedding of the mask token, alpha [...], delta [...,D] -> [...,D]."""
    alpha = alpha.to(delta.dtype).unsqueeze(-1)
    return (1 - alpha) * mask + alpha * delta


class RCD(RoundDecoder):
    name = "rcd"
    group = "trained"
    evidence = Evidence("own reference", ("rcd",))
    Config = RCDConfig
    roles = ("target", "reference")
    attention = ("block_causal", "full")
    guidable = False  # nothing is published of the residual of a guided prediction
    equalities = ("alpha=0 == threshold:tau=0.85", "alpha=0,sampler=static,k=2 == static:k=2")

    @classmethod
    def needs(cls, config: RCDConfig, attention: str | None) -> tuple[str, ...]:
        warm = config.residual_init == "warm" or (config.residual_init == "auto" and attention == "full")
        return cls.roles if warm and config.alpha else ("target",)

    def bind(self, nets: Networks, block_length: int) -> Traits:
        target, reference = nets["target"], nets.get("reference")
        self.whole_answer = full = target.config.attention == "full"
        self.warm = "reference" in self.needs(self.config, target.config.attention)
        self.hidden_size, self.dtype = target.config.hidden_size, target.dtype
        self.plain = self.config.plain(full)
        if self.warm and reference is None:
            raise RequestError("A warm RCD start needs a reference model: give --reference, or residual_init=cold.")
        if self.warm and reference is not None and reference.config.vocab_size != target.config.vocab_size:
            raise RequestError(
                f"The reference model has {reference.config.vocab_size} tokens and the target "
                f"{target.config.vocab_size}: RCD needs one vocabulary, give a reference of the target's family."
            )
        # warm: the host must know when a block begins, so that the reference runs for nobody else
        return Traits(scope="answer" if full else "block", lag=0 if self.warm else None)

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        precise = torch.promote_types(self.dtype, torch.float32)
        return {
            "alpha": torch.zeros(rows, width, dtype=precise, device=device),
            "delta": torch.zeros(rows, width, self.hidden_size, dtype=self.dtype, device=device),
        }

    def round(self, view: View, nets: Networks) -> Decision:
        target = nets["target"]
        if not self.config.alpha:
            return self.plain.decide(view, target.denoise(view))
        self._begin(view, nets)
        forward = target.denoise(view, embeds=self._inputs(view, target))
        alpha, delta = residual(
            forward.logits, target.embedding, self.config.residual_temperature, self.config.latent_strategy
        )
        self._keep(view, view.valid if forward.predicted is None else forward.predicted, alpha, delta)
        decision = self.plain.decide(view, forward)
        if view.tracing:
            decision.extra = {**(decision.extra or {}), "alpha": view.state["alpha"]}
        return decision

    def _begin(self, view: View, nets: Networks) -> None:
        """The first residual of blocks (or rows) that begin: none, or the reference's."""
        begins = view.total_steps == 0 if self.whole_answer else view.fresh
        state = view.state
        state["alpha"] = state["alpha"].masked_fill(begins.unsqueeze(1), 0.0)
        if self.warm and self._expected(view):
            prediction = nets["reference"].denoise(view, active=begins).logits
            alpha, delta = residual(prediction, nets["target"].embedding, 1.0, self.config.latent_strategy)
            self._keep(view, begins.unsqueeze(1), alpha, delta)

    def _expected(self, view: View) -> bool:
        """Does any row begin now? Where the host does not know yet: perhaps."""
        if view.host_rows is None:
            return True
        return any((row.total_steps if self.whole_answer else row.step) == 0 for row in view.host_rows if row)

    def _inputs(self, view: View, target: Network) -> Tensor:
        """Input embeddings of the view [R,W,D]: mixed where masked, plain elsewhere."""
        plain = target.embed(view.tokens)
        mixed = mix(target.embedding[view.mask_id], view.state["alpha"], view.state["delta"])
        return torch.where(view.masked.unsqueeze(-1), mixed, plain)

    def _keep(self, view: View, where: Tensor, alpha: Tensor, delta: Tensor) -> None:
        """Remember weight and content of the residual `where` [R,W or 1]; only masked positions are ever read."""
        state, factor = view.state, self.config.alpha
        state["alpha"] = torch.where(where, alpha * factor, state["alpha"])
        state["delta"] = torch.where(where.unsqueeze(-1), delta.to(state["delta"].dtype), state["delta"])
