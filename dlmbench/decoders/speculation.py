"""Arithmetic of draft-and-verify on explicit tensors: attention masks of a verification pack, acceptance rules, fills.

No networks and no state; `dlmbench.decoders.simsd` drives it (docs/methods/simsd.md).

A drafted stretch is described by two tensors: `step` [R,W], the draft step at which each position was revealed
(`KNOWN` where the token is given, `NEVER` where the draft stopped before it), and the drafted tokens.

Axes: R rows, W positions of the window, B block length, C copies, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

KNOWN, NEVER = -1, 1 << 20


def pack_mask(step: Tensor) -> Tensor:
    """Who sees whom in the packed verification of one block: D copies (drafted tokens) then M copies (masks).

    step [R,W] -> [R,2W,2W] bool (query, key). D at i imitates the block right after its own step, M at i the block
    right before it; known positions see only each other, and their M copies are nobody's keys.
    """
    known = step == KNOWN
    drafted = ~known
    si, sj = step.unsqueeze(2), step.unsqueeze(1)
    both = drafted.unsqueeze(2) & drafted.unsqueeze(1)
    among_known = known.unsqueeze(2) & known.unsqueeze(1)  # gives the idle M copies of known positions something to see
    d_rows = torch.cat([sj <= si, (sj > si) & both], 2)
    m_rows = torch.cat([(sj < si) | among_known, (sj >= si) & both], 2)
    return torch.cat([d_rows, m_rows], 1)


def row_mask(step: Tensor, group: Tensor, first: Tensor, block_length: int) -> Tensor:
    """The uncached layout: a whole row, drafted blocks in their places in it, then the M copies of these blocks.

    step [R,W] of the W = K * B drafted positions, which begin at position `first` [R]; group [R,T] tells the accepted
    blocks of the T positions apart (-1: prompt) -> [R,T+W,T+W] bool. Prompt tokens are block-causal among themselves,
    an accepted block sees the prompt, itself and earlier ones, a drafted block all of these, the D copies of earlier
    drafted blocks, and its own copies by the rule of `pack_mask`.
    """
    rows, length = group.shape
    window = step.shape[1]
    places = torch.arange(length, device=group.device)
    offset = torch.cat([(places - first.unsqueeze(1)), _offsets(step).expand(rows, -1)], 1)  # [R,T+W], D and M alike
    copy = torch.arange(length + window, device=group.device) >= length  # M copies
    inside = (offset >= 0) & (offset < window)
    old = offset < 0  # prompt and accepted tokens; what lies behind the window is neither and nobody's key
    when = torch.where(inside, step.gather(1, offset.clamp(0, window - 1)), NEVER)
    order = torch.where(old, torch.cat([group, group.new_zeros(rows, window)], 1), NEVER)
    grid = torch.cat([places, places.new_zeros(window)]) // block_length
    prompt = old & (order < 0)
    qi, kj = (lambda x: x.unsqueeze(2)), (lambda x: x.unsqueeze(1))
    among_prompt = qi(prompt) & kj(prompt) & (grid.unsqueeze(0) <= grid.unsqueeze(1))
    accepted = qi(old & ~prompt) & kj(old) & (kj(order) <= qi(order))
    drafted_sees_old = qi(inside) & kj(old)
    block = offset.div(block_length, rounding_mode="floor")
    earlier = qi(inside) & kj(inside & ~copy) & (kj(block) < qi(block))
    own = qi(inside) & kj(inside) & (kj(block) == qi(block))
    si, sj = qi(when), kj(when)
    mi, mj = copy.view(1, -1, 1), copy.view(1, 1, -1)
    rule = torch.where(mi, torch.where(mj, sj >= si, sj < si), torch.where(mj, sj > si, sj <= si))
    itself = torch.eye(length + window, dtype=torch.bool, device=group.device)  # positions of nobody need some key
    return among_prompt | accepted | drafted_sees_old | earlier | (own & rule) | (itself & ~qi(old | inside))


def _offsets(step: Tensor) -> Tensor:
    return torch.arange(step.shape[1], device=step.device).unsqueeze(0)


def copies(tokens: Tensor, step: Tensor, number: int, mask_id: int) -> tuple[Tensor, Tensor]:
    """One copy of the block for each of `number` draft steps, as it stood before that step; copies are blind to each
    other.

    tokens [R,W] with the draft in place, step [R,W] -> ids [R,C*W], allowed [1,C*W,C*W] bool.
    """
    before = step.unsqueeze(1) < torch.arange(number, device=step.device).view(1, -1, 1)  # [R,C,W]
    ids = torch.where(before, tokens.unsqueeze(1), mask_id).flatten(1)
    copy = torch.arange(number, device=step.device).repeat_interleave(tokens.shape[1])
    return ids, (copy.unsqueeze(0) == copy.unsqueeze(1)).unsqueeze(0)


def leading(good: Tensor, visited: Tensor) -> tuple[Tensor, Tensor]:
    """Positions before the first bad one, and that one. good and visited [R,W] bool -> two masks [R,W]."""
    bad = visited & ~good
    seen = bad.cumsum(1)
    return visited & (seen == 0), bad & (seen == 1)


def mrs_accepts(tokens: Tensor, draft: Tensor, target: Tensor, point: Tensor) -> Tensor:
    """Which drafted tokens rejection sampling accepts: point < min(1, q/p), never where p is 0.

    tokens [R,W], draft p and target q [R,W,V], point [R,W] uniform in [0,1) -> [R,W] bool.
    """
    p, q = (x.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) for x in (draft, target))
    return (p > 0) & (point < (q / p.clamp_min(torch.finfo(p.dtype).tiny)).clamp_max(1.0))


def mrs_replacement(tokens: Tensor, draft: Tensor, target: Tensor) -> Tensor:
    """Distribution of the token that replaces a rejected one: max(0, q - p) normalised; q itself where that vanishes or
    where the draft could not have drawn its token.

    tokens [...], draft p and target q [...,V] -> [...,V].
    """
    rest = (target - draft).clamp_min(0.0)
    total = rest.sum(-1, keepdim=True)
    impossible = draft.gather(-1, tokens.unsqueeze(-1)) <= 0
    return torch.where((total <= 0) | impossible, target, rest / total.clamp_min(torch.finfo(total.dtype).tiny))


def filled(
    fill: str, accepted: Tensor, bonus: Tensor, block: Tensor, open_: Tensor, draft: Tensor, final: Tensor, best: Tensor
) -> tuple[Tensor, Tensor]:
    """What is committed after a verification: (positions [R,W], tokens [R,W]).

    accepted and bonus [R,W] from `leading`; block [W] numbers the window's blocks; open_ [R,W] positions that were
    drafted for; draft, final (accepted tokens and the replacement) and best (the target's own choices) [R,W]. A block
    with a rejection is filled according to `fill`, later blocks are dropped.
    """
    rejected = bonus.any(1, keepdim=True)
    last = torch.where(rejected, (bonus * block).sum(1, keepdim=True), block[-1])
    done = accepted | bonus
    if fill == "truncate":
        return done, final
    if fill == "truncate_no_bonus":
        here = open_ & (block == last)
        alone = ~(accepted & here).any(1, keepdim=True)
        closing = ~(here & ~done).any(1, keepdim=True)  # nothing is left to fill, so the replacement stays
        return accepted | (bonus & (alone | closing)), final
    whole = open_ & (block <= last)
    if fill == "target_argmax_all":
        return whole, torch.where(rejected & (block == last), best, final)
    rest = draft if fill == "draft_argmax" else best
    return whole, torch.where(done, final, rest)
