"""The ADJUST sampler: one layer that moves a frozen backbone's hidden states after a token was drawn (ADJUST,
arXiv 2509.22738).

Inputs are the tokens of the whole row and the backbone's states after its final norm, each at the position that it
predicts; the output are the moved states, which the backbone's own head turns into logits. Embedding table, head and
rotary angles are the backbone's.

Two layouts are read, in safetensors: the authors' (`drafter.*` of a Lightning state dict; the frozen base model that
lies beside it is ignored), and our own, the same names beside a config.json that holds the hash of the backbone's
weights. A published file with other names is read through `names` in its config.json: {name here: name there}.

Left out: the ablations of the release (no attention, a copy for every call, features of four layers).

Axes: N flattened tokens, D width, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.loading import _packed_sizes
from dlmbench.backbone.model import Attend, Layer, Prepared, Transformer
from dlmbench.backbone.ops import Matrix, Norm, linear, matrix_of, norm_of, rms_norm
from dlmbench.backbone.tensors import Tensors
from dlmbench.errors import RequestError
from dlmbench.files import model_name, read_json
from dlmbench.heads.mrp import HeadConfig
from dlmbench.registry import BACKBONES

PREFIX = "drafter."
OWN = {  # ours -> the authors'
    "norm_embed": "norm_embed.0.weight",
    "norm_hidden": "norm_hidden.0.weight",
    "norm_postattn": "norm_postattn.0.weight",
    "down_project.weight": "down_project.0.weight",
    "down_project.bias": "down_project.0.bias",
}
ABLATIONS = {"disable_attn": False, "n_layers": 1, "shared_params": True}  # the values that are read


class AdjustHeadConfig(HeadConfig):
    """Sizes and work of the sampler alone; `HeadConfig` has all of it but the biases."""

    @property
    def parameters(self) -> int:
        qkv = self.head_dim * (self.num_heads + 2 * self.num_kv_heads) * self.qkv_bias
        return super().parameters + self.hidden_size + qkv


class AdjustModule(Prepared):
    """The trainable part. `backbone` lends embedding, head and rotary tables; it is neither trained nor saved here."""

    def __init__(self, backbone: Transformer):
        super().__init__()
        self.config = AdjustHeadConfig.of(backbone.config, 1)
        self.lender = (backbone,)  # a tuple, so that the backbone is not a part of this module
        width = self.config.hidden_size
        self.norm_embed, self.norm_hidden = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.norm_postattn = nn.Parameter(torch.ones(width))
        self.down_project = nn.Linear(2 * width, width)
        self.layer = Layer(self.config)

    @property
    def backbone(self) -> Transformer:
        return self.lender[0]

    @property
    def norm(self) -> Tensor:
        """The last norm, where networks look up device and dtype."""
        return self.norm_postattn

    def forward(self, ids: Tensor, hidden: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """ids and positions [N], hidden [N,D] -> moved states [N,D]."""
        x = self.join(ids, hidden)
        cos, sin = self.backbone._rotation(positions, x.dtype)
        return self.move(hidden, self.layer(0, x, cos, sin, attend))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """As a backbone has them, for training."""
        return (self.layer,)

    def join(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """The layer's input. ids [N], hidden [N,D] -> [N,D]; embedding half first."""
        of_embedding, of_state, joining, _ = self._weights()
        both = torch.cat([rms_norm(self.backbone.embed(ids), of_embedding), rms_norm(hidden, of_state)], -1)
        return linear(both, joining, self.down_project.bias)

    def move(self, hidden: Tensor, x: Tensor) -> Tensor:
        """States [N,D] moved by the layer's output x [N,D]."""
        return hidden + rms_norm(x, self._weights()[-1])

    def _look_up(self) -> tuple[Norm, Norm, Matrix, Norm]:
        norms = self.norm_embed, self.norm_hidden, self.norm_postattn
        of_embedding, of_state, last = (norm_of(norm, self.config.rms_norm_eps) for norm in norms)
        return of_embedding, of_state, matrix_of(self.down_project.weight), last

    def embed(self, ids: Tensor) -> Tensor:
        return self.backbone.embed(ids)

    def project(self, states: Tensor) -> Tensor:
        """Logits [..., V] of moved states [..., D], by the backbone's head."""
        return self.backbone.project(states)

    @torch.no_grad()
    def init_weights(self, gain: float = 0.1, seed: int = 0) -> AdjustModule:
        """Torch's own defaults and norms at one, as the authors begin, but the last norm at `gain`: a call moves little
        at first. With 0 it moves nothing, and the layer has no gradient.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in self.modules():
                if isinstance(part, nn.Linear):
                    part.reset_parameters()
        self.norm_postattn.fill_(gain)
        return self

    @torch.no_grad()
    def init_random(self, seed: int = 0) -> AdjustModule:
        """Loud random matrices for tests and `check`, norms at one: every call moves the states visibly."""
        generator = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
            elif weight is self.down_project.bias or weight is self.layer.qkv.bias:
                weight.zero_()
        return self


# --- files ------------------------------------------------------------------------------------------------------------


def load_module(folder: Path, backbone: Transformer, weights: str | None = None) -> AdjustModule:
    """A frozen sampler for `backbone`, on its device and in its dtype.

    `weights` is the hash of the backbone's files; a sampler of our own layout is refused beside any other backbone.
    Raises RequestError for that, for a folder without a sampler, for an ablation, and for shapes that do not fit.
    """
    raw, whose = read_json(folder / "config.json") or {}, model_name(folder)
    _check(whose, raw, weights)
    tensors = Tensors(folder)
    renamed = raw.get("names") or {}
    with torch.device("meta"):
        module = AdjustModule(backbone)
    names = {ours: [renamed.get(n, n) for n in _official(ours, backbone.config)] for ours in module.state_dict()}
    wanted = [name for parts in names.values() for name in parts]
    if missing := [name for name in wanted if name not in tensors.place]:
        raise RequestError(
            f"Folder {whose!r} holds no ADJUST sampler (no tensor {missing[0]}): give --head the folder of one, or map "
            "its names in config.json (names: {name here: name there})."
        )
    tensors.check(wanted, 1, PREFIX)
    state = {}
    for ours, parameter in module.state_dict().items():
        if tensors.shape(names[ours]) != parameter.shape:
            raise RequestError(
                f"ADJUST sampler {whose}: tensor {ours} has shape {tensors.shape(names[ours])}, this backbone needs "
                f"{tuple(parameter.shape)}; give --model the backbone that the sampler belongs to."
            )
        state[ours] = tensors.joined(names[ours], backbone.norm.device, backbone.norm.dtype)
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(False).eval()


def _check(whose: str, raw: dict, weights: str | None) -> None:
    for name, value in ABLATIONS.items():
        if raw.get(name, value) != value:
            raise RequestError(
                f"ADJUST sampler {whose} has {name}={raw[name]!r}; only {value!r} is read, as in the released "
                "configuration."
            )
    trained_on = (raw.get("backbone") or {}).get("weights")
    if trained_on and weights and trained_on != weights:
        raise RequestError(
            f"ADJUST sampler {whose} was trained on backbone weights {trained_on}, the model has {weights}: "
            "give --model the backbone it belongs to, or train a sampler for this one."
        )


def save_module(
    module: AdjustModule, folder: str | Path, weights: str, dtype: torch.dtype = torch.bfloat16, **about
) -> Path:
    """Write the sampler alone in the authors' names; `weights` is the hash of the backbone it was trained on."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for ours, tensor in module.state_dict().items():
        names = _official(ours, module.config)
        sizes = _packed_sizes(ours, module.config) if len(names) > 1 else [tensor.shape[0]]
        for name, part in zip(names, tensor.detach().split(sizes), strict=True):
            tensors[name] = part.to(device="cpu", dtype=dtype).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    backbone = {"weights": weights, "family": module.config.family, "hidden_size": module.config.hidden_size}
    config = {"model_type": "adjust", **ABLATIONS, "backbone": backbone, **about}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def _official(ours: str, config: BackboneConfig) -> list[str]:
    """Names in the file of one of our tensors, in the order in which they are packed."""
    if ours in OWN:
        return [PREFIX + OWN[ours]]
    names = BACKBONES.get(config.family).layout.names["layers.{}." + ours.removeprefix("layer.")]
    return [PREFIX + "layers.0.0." + name.partition("{}.")[2] for name in names]
