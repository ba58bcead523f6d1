"""Muon for the matrices, AdamW for embedding and norms, on float32 master weights.

Muon (momentum, then a few Newton-Schulz steps that make the update nearly orthogonal) sees the matrices that the
mathematics has: packed products (q, k, v; gate and up) are taken apart, wide ones transposed, and all of one shape go
through Newton-Schulz as one batch. Newton-Schulz runs in the dtype of the training step: bfloat16 is fast only where
the processor has it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the published quintic: singular values end in about 0.7 .. 1.2


def orthogonalize(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Replace each matrix by one with nearly the same singular vectors and singular values near one.

    matrices [M, rows, cols] with rows >= cols -> the same shape, in the dtype of the input.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.to(dtype)
    for _ in range(steps):
        gram = x.transpose(1, 2) @ x
        x = a * x + x @ (b * gram + c * gram @ gram)
    return x.to(matrices.dtype)


class Muon:
    """Momentum 0.95 (Nesterov), orthogonalised updates of size lr * sqrt(max(1, out / in)).

    `parts` gives how many stacked matrices a weight holds, by name.
    """

    def __init__(self, weights: dict[str, nn.Parameter], parts: dict[str, int], momentum: float = 0.95):
        self.weights, self.parts, self.momentum = weights, parts, momentum
        self.buffers = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor], lr: float, dtype: torch.dtype = torch.float32) -> None:
        groups: dict[tuple[int, int], list[tuple[Tensor, Tensor, float]]] = {}
        for name, weight in self.weights.items():
            buffer = self.buffers[name].lerp_(gradients[name], 1 - self.momentum)
            update = gradients[name].lerp(buffer, self.momentum)
            for target, matrix in zip(weight.chunk(self.parts[name]), update.chunk(self.parts[name]), strict=True):
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                if matrix.shape[0] < matrix.shape[1]:
                    target, matrix = target.t(), matrix.t()
                groups.setdefault((matrix.shape[0], matrix.shape[1]), []).append((target, matrix, scale))
        for group in groups.values():
            updates = orthogonalize(torch.stack([matrix for _, matrix, _ in group]), dtype=dtype)
            for (target, _, scale), update in zip(group, updates, strict=True):
                target.add_(update, alpha=-lr * scale)

    def state_dict(self) -> dict[str, Tensor]:
        return self.buffers

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.buffers = state


class Optimizer:
    """Both optimisers over the float32 master copy of a network."""

    def __init__(self, master: nn.Module, matrix_lr: float, vector_lr: float, clip: float):
        self.master, self.matrix_lr, self.vector_lr, self.clip = master, matrix_lr, vector_lr, clip
        named = dict(master.named_parameters())
        inside = ("layers.", "layer.")
        matrices = {name: weight for name, weight in named.items() if name.startswith(inside) and weight.dim() == 2}
        parts = {name: 3 if ".qkv." in name else 2 if ".gate_up." in name else 1 for name in matrices}
        self.muon = Muon(matrices, parts)
        self.others = {name: weight for name, weight in named.items() if name not in matrices}
        self.adam = torch.optim.AdamW(self.others.values(), lr=vector_lr, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, gradients: dict[str, Tensor], rate: float, dtype: torch.dtype = torch.float32) -> float:
        """One update with float32 gradients by name, at a share `rate` of the learning rates -> gradient norm."""
        norm = torch.stack([g.norm() for g in gradients.values()]).norm()
        shrink = (self.clip / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients.values():
            gradient.mul_(shrink)
        self.muon.step(gradients, self.matrix_lr * rate, dtype)
        for name, weight in self.others.items():
            weight.grad = gradients[name]
        self.adam.param_groups[0]["lr"] = self.vector_lr * rate
        self.adam.step()
        return norm.item()

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
