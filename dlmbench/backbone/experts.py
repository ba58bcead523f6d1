"""The sparse MLP: every token goes through the few experts that a router chooses for it.

`Router` rules are data (`dlmbench.backbone.config.Experts`): softmax over all experts with the chosen weights
renormalised (Qwen3-MoE, SDAR-MoE) or left as they are (OLMoE, LLaDA-MoE), and sigmoid scores with a bias that only
selects, groups of experts and a scaling factor (DeepSeek-V3, arXiv 2412.19437, equations 12 to 16; LLaDA2). The router
computes in float32 whatever the layers do, for near ties decide which experts are chosen.

Three ways to the same sum: `by_loop` is the reference, a loop over experts in the plainest torch; `by_group` sorts
tokens by expert for torch's grouped products; `by_all` lets every token through every expert, for devices that have no
grouped product which can be recorded. The last two never ask the host anything. Training of routers (balancing losses)
is left out.

Axes: N tokens, E experts, K experts of a token, D width, F width of an expert.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlmbench.backbone.config import Experts
from dlmbench.backbone.ops import Matrix, add_linear, linear, matrix_of

ALIGNMENT = 16  # bytes that rows of a grouped product's operands must be multiples of
GROUPED = (torch.float32, torch.bfloat16, torch.float16)  # what torch multiplies in groups on a CPU
WIDEST = 1 << 26  # elements that `by_all` may hold at once


class SparseWeights(NamedTuple):
    """What a sparse MLP reads: router [E,D] and selecting bias [E] in float32, gate_up [E,2F,D], down [E,D,F], and the
    two products of the shared expert."""

    router: Tensor
    bias: Tensor | None
    gate_up: Tensor
    down: Tensor
    shared: tuple[Matrix, Matrix] | None


class SparseMLP(nn.Module):
    """SwiGLU experts behind a router, and beside them a shared expert that sees every token, if there is one."""

    def __init__(self, width: int, experts: Experts):
        super().__init__()
        self.rule = experts
        self.router = nn.Parameter(torch.zeros(experts.count, width))
        self.bias = nn.Parameter(torch.zeros(experts.count)) if experts.bias else None
        self.gate_up = nn.Parameter(torch.zeros(experts.count, 2 * experts.width, width))
        self.down = nn.Parameter(torch.zeros(experts.count, width, experts.width))
        self.shared_gate_up = self.shared_down = None
        if experts.shared_width:
            self.shared_gate_up = nn.Linear(width, 2 * experts.shared_width, bias=False)
            self.shared_down = nn.Linear(experts.shared_width, width, bias=False)

    def ready(self) -> SparseWeights:
        """The weights as the forward reads them."""
        shared = None
        if self.shared_gate_up is not None and self.shared_down is not None:
            shared = matrix_of(self.shared_gate_up.weight), matrix_of(self.shared_down.weight)
        bias = None if self.bias is None else self.bias.float()
        return SparseWeights(self.router.float(), bias, self.gate_up, self.down, shared)

    def forward(self, residual: Tensor, x: Tensor, weights: SparseWeights) -> Tensor:
        """residual [N,D] plus what experts make of x [N,D] -> [N,D]."""
        chosen, shares = route(x, weights.router, weights.bias, self.rule)
        if weights.shared is not None:
            gate_up, down = weights.shared
            residual = add_linear(residual, _swiglu(linear(x, gate_up)), down)
        mix = by_group if groupable(x, weights.gate_up, weights.down) else by_all
        return residual + mix(x, chosen, shares, weights.gate_up, weights.down)


def route(x: Tensor, router: Tensor, bias: Tensor | None, rule: Experts) -> tuple[Tensor, Tensor]:
    """Experts of every token and their weights in the sum, best first. x [N,D], router [E,D], bias [E] -> 2 [N,K]."""
    logits = F.linear(x.to(router.dtype), router)
    scores = logits.sigmoid() if rule.score == "sigmoid" else logits.softmax(-1)
    ranked = scores if bias is None else scores + bias
    if rule.groups > 1:
        ranked = _within_best_groups(ranked, rule)
    chosen = ranked.topk(rule.active, -1).indices
    shares = scores.gather(1, chosen)  # of the scores: a bias selects and weighs nothing
    if rule.renormalised:
        shares = shares / (shares.sum(-1, keepdim=True) + 1e-20)
    return chosen, shares if rule.scaling == 1 else shares * rule.scaling


def _within_best_groups(ranked: Tensor, rule: Experts) -> Tensor:
    """-inf outside the groups whose two best experts have the largest sums. ranked [N,E] -> [N,E]."""
    groups = ranked.unflatten(1, (rule.groups, -1))
    best = groups.topk(2, -1).values.sum(-1).topk(rule.active_groups, -1).indices
    dropped = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter_(1, best, False)
    return groups.masked_fill(dropped.unsqueeze(-1), float("-inf")).flatten(1)


def by_loop(x: Tensor, chosen: Tensor, shares: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The reference. x [N,D], chosen and shares [N,K], gate_up [E,2F,D], down [E,D,F] -> weighted sums [N,D]."""
    out = torch.zeros_like(x)
    for expert in range(len(gate_up)):
        token, rank = torch.where(chosen == expert)
        made = F.linear(_swiglu(F.linear(x[token], gate_up[expert])), down[expert])
        out = out.index_add(0, token, made * shares[token, rank].unsqueeze(1).to(x.dtype))
    return out


def by_group(x: Tensor, chosen: Tensor, shares: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`by_loop` with tokens in the order of their experts, each expert's share of them one product in a group."""
    number, active = chosen.shape
    experts, order = chosen.flatten().sort(stable=True)
    ends = torch.searchsorted(experts, torch.arange(len(gate_up), device=x.device), right=True, out_int32=True)
    tokens = x.index_select(0, order // active)
    hidden = _swiglu(F.grouped_mm(tokens, gate_up.transpose(1, 2), offs=ends))
    made = F.grouped_mm(hidden, down.transpose(1, 2), offs=ends)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    made = made.index_select(0, place).view(number, active, -1)
    return torch.bmm(shares.unsqueeze(1).to(x.dtype), made).squeeze(1)


def by_all(x: Tensor, chosen: Tensor, shares: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`by_loop` with all tokens through all experts, those not chosen with weight 0."""
    everyone = shares.new_zeros(len(x), len(gate_up)).scatter_(1, chosen, shares).to(x.dtype)
    at_once = max(WIDEST // (gate_up.shape[0] * gate_up.shape[1]), 1)
    parts = []
    for tokens, share in zip(x.split(at_once), everyone.split(at_once), strict=True):
        hidden = _swiglu(tokens @ gate_up.transpose(1, 2)) * share.t().unsqueeze(-1)  # [E,n,F]
        parts.append((hidden @ down.transpose(1, 2)).sum(0))
    return torch.cat(parts)


def groupable(x: Tensor, gate_up: Tensor, down: Tensor) -> bool:
    """Does torch have a grouped product of these that never asks the host? On CUDA only in bfloat16 from compute
    capability 9.0 on: elsewhere its grouped product copies the sizes of the groups to the host first."""
    if any(size * x.element_size() % ALIGNMENT for size in (gate_up.shape[2], down.shape[2])):
        return False
    if x.device.type == "cuda":
        return x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (9, 0)
    return x.device.type == "cpu" and x.dtype in GROUPED


def _swiglu(gate_up: Tensor) -> Tensor:
    """[...,2F] -> [...,F]"""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up
