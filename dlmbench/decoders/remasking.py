"""What decoders share that turn filled positions back into masks (`remdm_loop`, `rcr`, `saber`).

They differ in what they remember of a position, how many they open and when. Common to all: only the answer's own
filled positions are opened, those of lowest score first and ties to the left, and a position that is filled and opened
by the same forward has not changed at all.

Axes: R rows, W positions of the view, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmbench.decoders.base import Decision, View, top_n
from dlmbench.decoders.predict import Candidates


def standing(view: View, logits: Tensor) -> Candidates:
    """Proposals at masks, elsewhere the tokens that stand there, with their scores. logits [R,W,V]."""
    proposed = view.candidates(logits).tokens
    return view.candidates(logits, tokens=torch.where(view.masked, proposed, view.tokens))


def filled_after(view: View, fill: Tensor) -> Tensor:
    """The answer's own positions [R,W] that hold a token once `fill` [R,W] bool has been filled."""
    return fill | (view.own & ~view.masked)


def weakest(score: Tensor, filled: Tensor, n: int | Tensor) -> Tensor:
    """The n filled positions of lowest score. score [R,W], filled [R,W] bool, n int or [R] -> bool [R,W]."""
    return top_n(-score, filled, n)


def changes(view: View, tokens: Tensor, fill: Tensor, opened: Tensor) -> Decision:
    """First `fill`, then open `opened` (both [R,W] bool), as the net change of the canvas."""
    return Decision(tokens, reveal=fill & ~opened, remask=opened & ~view.masked)
