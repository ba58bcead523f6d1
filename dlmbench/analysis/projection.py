"""What a row would cost on large models that read all their weights for every forward: one row of a batch, a GPU.

The measured `cost` of small models says whether speculation pays here; there the draft is a quarter of the target and
no forward is bound by memory. On SDAR-8B a forward costs the weights it reads, whatever its width, so a row's cost is
its forwards plus the passes of its helpers at their share of those weights: SDAR-1.7B as the draft, an MRP module of
three layers of the 8B as the head. Prefill is left out. Other helpers have no such pair and no projection.
"""

from __future__ import annotations

from collections.abc import Mapping

# weights read by a pass (layers and output head) over those of SDAR-8B, from the shapes of dlmbench.models.shapes
SHARES = {"draft": 0.227, "head": 0.163}
OTHERS = ("guide", "reference")


def projected_cost(method: str, nfe: float | None, helpers: Mapping[str, float]) -> float | None:
    """Forwards of an 8B target that an item of this row would cost; helpers: role -> passes an item."""
    if nfe is None or any(helpers.get(role) for role in OTHERS):
        return None
    if helpers.get("head") and method != "mrp":
        return None  # another head than the one that the share belongs to
    return nfe + sum(share * helpers.get(role, 0.0) for role, share in SHARES.items())
