"""The unmasking policy: a small network that says at which positions to unmask now (arXiv 2512.09106).

It reads the top-1 probability of every position, which of them are masked, and the time; it knows neither tokens nor
hidden states, so it may be used beside any backbone. Two layouts are read, both in the authors' tensor names
(`base_policy.*`): theirs, whose config.json need not name the sizes (they follow from the tensors; heads: 2 unless it
says otherwise), and our own, which also notes the backbone that it was trained beside.

Left out: the variants that read the fifty largest probabilities, or hidden states (no better in the paper).

Axes: N flattened positions, R rows, W positions of a row, D width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from dlmbench.backbone.model import Attend, Embedding
from dlmbench.backbone.tensors import Tensors
from dlmbench.errors import RequestError
from dlmbench.files import model_name, read_json

PREFIX = "base_policy."
ONLY = {"time_period": 1, "confidences_top_p": 1}  # values of config.json that are read


@dataclass(frozen=True)
class PolicyConfig:
    """Sizes of a policy (defaults: the authors')."""

    hidden_size: int = 128
    intermediate_size: int = 512
    num_heads: int = 2
    time_size: int = 128
    num_layers: int = 1
    shift: int = 0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def parameters(self) -> int:
        d, f, e = self.hidden_size, self.intermediate_size, self.time_size
        block = 4 * (d * d + d) + 2 * d * f + f + d + 4 * d + 6 * (d * d + d)
        return 2 * d + 2 * d + e * d + d + d * d + d + self.num_layers * block + 2 * d + d + 1

    def flops(self, query_tokens: float, attended: float, projected: float | None = None) -> float:
        d = self.hidden_size
        matrices = self.num_layers * (10 * d * d + 2 * d * self.intermediate_size) + self.time_size * d + d * d + d
        projected = query_tokens if projected is None else projected
        return 2 * matrices * query_tokens + 4 * self.num_layers * d * attended + 2 * d * projected


class Block(nn.Module):
    """Attention and feed-forward whose norms and gates are set by the conditioning of each position."""

    inv_freq: Tensor

    def __init__(self, config: PolicyConfig):
        super().__init__()
        width, self.heads = config.hidden_size, config.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.linear1, self.linear2 = (
            nn.Linear(width, config.intermediate_size), nn.Linear(config.intermediate_size, width)
        )  # fmt: skip
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ada_conditioning = nn.Linear(width, 6 * width)
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self.register_buffer("inv_freq", 10_000.0**-half)

    def forward(self, index: int, x: Tensor, condition: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """x and condition [N,D], positions [N] -> [N,D]. Gates are 1 + a: zero conditioning leaves a plain block."""
        g1, b1, a1, g2, b2, a2 = self.ada_conditioning(condition).chunk(6, -1)
        h = self.norm1(x) * (1 + g1) + b1
        q, k, v = (part(h).view(x.shape[0], self.heads, -1) for part in (self.q_proj, self.k_proj, self.v_proj))
        kv = torch.cat([self._rotate(k, positions), v], 1)
        x = x + self.out_proj(attend(index, self._rotate(q, positions), kv)) * (1 + a1)
        h = self.norm2(x) * (1 + g2) + b2
        return x + self.linear2(F.gelu(self.linear1(h))) * (1 + a2)

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Pairs (2i, 2i+1) turn together; the results stand as two halves, which inner products do not notice."""
        angles = (positions.unsqueeze(1) * self.inv_freq).unsqueeze(1)  # [N,1,d/2]
        cos, sin = angles.cos(), angles.sin()
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.cat([even * cos - odd * sin, even * sin + odd * cos], -1)


class PolicyNetwork(nn.Module):
    """Attributes carry the authors' names."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.confidence_proj = nn.Linear(1, width)
        self.mask_embedding = Embedding(2, width)
        self.time_mlp = nn.Sequential(nn.Linear(config.time_size, width), nn.SiLU(), nn.Linear(width, width))
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(width)
        self.output_proj = nn.Linear(width, 1)

    @property
    def norm(self) -> Tensor:
        """A weight of the last norm, where networks look up device and dtype."""
        return self.final_norm.weight

    def forward(self, confidence: Tensor, masked: Tensor, time: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """confidence, masked, time and positions [N], the last counted inside the row -> states [N,D]."""
        condition = self.mask_embedding(masked.long()) + self.time_mlp(self._time(time))
        x = self.confidence_proj(confidence.unsqueeze(-1))
        for index, block in enumerate(self.transformer_blocks):
            x = block(index, x, condition, positions, attend)
        return x

    def reserve(self, positions: int) -> None:
        """Nothing to prepare: angles are computed with every call."""

    def project(self, states: Tensor) -> Tensor:
        """Logit of unmasking now. [...,D] -> [...]"""
        return self.output_proj(self.final_norm(states)).squeeze(-1)

    def _time(self, time: Tensor) -> Tensor:
        """Embedding of the time [N] -> [N,E]: a time period of 1 makes every frequency 1; bfloat16 as in training."""
        half = self.config.time_size // 2
        waves = torch.cat([time.cos().unsqueeze(-1).expand(-1, half), time.sin().unsqueeze(-1).expand(-1, half)], -1)
        return waves.bfloat16().to(self.norm.dtype)

    @torch.no_grad()
    def init_weights(self, seed: int = 0, bias: float = -2.0) -> PolicyNetwork:
        """As the authors begin: conditioning zero, output bias -2 (an unmask probability of 0.12)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in self.modules():
                if isinstance(part, nn.Linear | nn.Embedding | nn.LayerNorm):
                    part.reset_parameters()
        for block in self.transformer_blocks:
            assert isinstance(block, Block)
            block.ada_conditioning.weight.zero_()
            block.ada_conditioning.bias.zero_()
        self.output_proj.bias.fill_(bias)
        return self

    @torch.no_grad()
    def init_random(self, seed: int = 0) -> PolicyNetwork:
        """Loud random matrices for tests and `check`: logits of both signs that depend on everything."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
        return self


# --- files ------------------------------------------------------------------------------------------------------------


def load_policy(folder: Path, device: torch.device | str = "cpu") -> PolicyNetwork:
    """A frozen policy in float32, whatever the backbone's dtype: it is small and its decisions are close.

    Raises RequestError for a folder without one and for the variants that are not read.
    """
    raw, whose = read_json(folder / "config.json") or {}, model_name(folder)
    for name, value in ONLY.items():
        if raw.get(name, value) != value:
            raise RequestError(
                f"Policy {whose} has {name}={raw[name]!r}; only {value!r} is read, as in the published runs."
            )
    tensors = Tensors(folder)
    if f"{PREFIX}confidence_proj.weight" not in tensors.place:
        raise RequestError(
            f"Folder {whose!r} holds no unmasking policy (no tensor {PREFIX}confidence_proj.weight): give --head "
            "the folder of a trained one."
        )
    names = [name for name in tensors.place if name.startswith(PREFIX)]
    tensors.check_plain(names)
    state = {name[len(PREFIX) :]: tensors.get(name).to(device).float() for name in names}
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))
    config = PolicyConfig(
        hidden_size=state["confidence_proj.weight"].shape[0],
        intermediate_size=state["transformer_blocks.0.linear1.weight"].shape[0],
        num_heads=raw.get("num_heads") or 2,
        time_size=state["time_mlp.0.weight"].shape[1],
        num_layers=blocks,
    )
    with torch.device(device):
        policy = PolicyNetwork(config)
    ours = policy.state_dict()
    wrong = sorted(set(ours) ^ set(state)) or [n for n in ours if ours[n].shape != state[n].shape]
    if wrong:
        raise RequestError(
            f"Policy {whose}: tensor {wrong[0]} is missing, unknown or of another shape; only the confidence "
            "policy of the release is read."
        )
    policy.load_state_dict(state)
    return policy.requires_grad_(False).eval()


def save_policy(policy: PolicyNetwork, folder: str | Path, weights: str, **about) -> Path:
    """Write a policy in the authors' names; `weights` is the hash of the backbone it was trained beside."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "policy", "num_heads": policy.config.num_heads, **ONLY, "backbone": {"weights": weights}}
    (folder / "config.json").write_text(json.dumps({**config, **about}, indent=2) + "\n")
    return folder
