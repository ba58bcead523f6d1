"""`ar`: ordinary autoregressive decoding of a causal parent, the baseline every diffusion model descends from.

The canvas is cut into blocks of one position; the forward of the last known token predicts the next one and keeps its
own keys and values, so there is nothing to store.
"""

from __future__ import annotations

import torch

from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, Evidence, StepDecoder, View


class AR(StepDecoder):
    name = "ar"
    group = "selectors"
    evidence = Evidence("own reference")
    attention = ("causal",)

    def decide(self, view: View, forward: Forward) -> Decision:
        best = view.candidates(forward.logits)
        return Decision(best.tokens, torch.ones_like(view.eligible))
