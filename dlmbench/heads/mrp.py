"""The MRP module: a few layers that predict how a frozen backbone's logits move after a reveal (MRP, arXiv 2605.18817).

Inputs are the tokens after the reveal and the backbone's hidden states (after its final norm) from before it; the
output, sent through the backbone's own head, is the residual C: corrected logits are A + C. Embedding table, head and
rotary angles are the backbone's; the module owns two norms, one product and its layers.

Two layouts are read: the released one, backbone and module in one folder (`mrp_modules.0.model.*`, or the legacy
prefix `mtp_modules.`; tied copies of embedding and head are ignored), and our own, the module alone in a folder beside
any backbone, whose config.json names the hash of the backbone's weights.

Left out: several modules in one checkpoint; the mixture-of-experts variant.

Axes: N flattened tokens, D width, V vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
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
from dlmbench.registry import BACKBONES

PREFIXES = ("mrp_modules.0.model.", "mtp_modules.0.model.")  # the second is of early releases
OWN = ("enorm", "hnorm", "norm", "eh_proj.weight")  # what the module has besides its layers


@dataclass(frozen=True)
class HeadConfig(BackboneConfig):
    """The backbone's configuration with the module's depth: sizes and work are those of the module alone."""

    @classmethod
    def of(cls, backbone: BackboneConfig, layers: int) -> HeadConfig:
        values = {f.name: getattr(backbone, f.name) for f in fields(BackboneConfig)}
        return replace(cls(**values), num_layers=layers)

    @property
    def parameters(self) -> int:
        """The module's own: D layers, the product that joins its two inputs, and norms."""
        norms = (2 * self.num_layers + 3) * self.hidden_size + 2 * self.num_layers * self.head_dim * self.qk_norm
        return self.num_layers * self.layer_parameters + 2 * self.hidden_size**2 + norms

    def flops(self, query_tokens: float, attended: float, projected: float | None = None) -> float:
        return super().flops(query_tokens, attended, projected) + 4 * self.hidden_size**2 * query_tokens


class MRPModule(Prepared):
    """The trainable part. `backbone` lends embedding, head and rotary tables; it is neither trained nor saved here.

    residual: the output moves the backbone's logits (True) or replaces them (the naive ablation); None: not stated.
    """

    def __init__(self, backbone: Transformer, layers: int, residual: bool | None = None):
        super().__init__()
        self.config, self.residual = HeadConfig.of(backbone.config, layers), residual
        self.lender = (backbone,)  # a tuple, so that the backbone is not a part of this module
        width = self.config.hidden_size
        self.enorm, self.hnorm = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.eh_proj = nn.Linear(2 * width, width, bias=False)
        self.layers = nn.ModuleList(Layer(self.config) for _ in range(layers))
        self.norm = nn.Parameter(torch.ones(width))

    @property
    def backbone(self) -> Transformer:
        return self.lender[0]

    def join(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """The layers' input. ids [N] after the reveal, hidden [N,D] from before it -> [N,D]; embedding half first."""
        enorm, hnorm, joining, _ = self._weights()
        both = torch.cat([rms_norm(self.backbone.embed(ids), enorm), rms_norm(hidden, hnorm)], -1)
        return linear(both, joining, self.eh_proj.bias)

    def forward(self, ids: Tensor, hidden: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """ids and positions [N], hidden [N,D] -> the module's state after its final norm [N,D]."""
        x = self.join(ids, hidden)
        cos, sin = self.backbone._rotation(positions, x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(index, x, cos, sin, attend)
        return rms_norm(x, self._weights()[-1])

    def _look_up(self) -> tuple[Norm, Norm, Matrix, Norm]:
        enorm, hnorm, last = (norm_of(norm, self.config.rms_norm_eps) for norm in (self.enorm, self.hnorm, self.norm))
        return enorm, hnorm, matrix_of(self.eh_proj.weight), last

    def embed(self, ids: Tensor) -> Tensor:
        return self.backbone.embed(ids)

    def project(self, states: Tensor) -> Tensor:
        """Residual logits [..., V] of the module's states [..., D], by the backbone's head."""
        return self.backbone.project(states)

    @torch.no_grad()
    def init_weights(self, start: str = "layers", seed: int = 0, gain: float = 0.1) -> MRPModule:
        """``layers``: copies of the backbone's last layers over the sum of both inputs; ``random``: normal layers of
        standard deviation 0.02; ``authors``: everything normal with 0.2, norms included, as they do.

        The first two begin with a final norm of `gain`, a small change of the logits: with 0 there would be none, and
        no gradient for the layers until the norm has grown. A module that replaces logits begins with the backbone's
        final norm.
        """
        if start == "authors":
            generator = torch.Generator().manual_seed(seed)
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
            return self
        config, eye = self.config, torch.eye(self.config.hidden_size)
        donor = self.backbone if start == "layers" else Transformer(replace(config, vocab_size=1)).init_weights(seed)
        for ours, theirs in zip(self.layers, donor.layers[-len(self.layers) :], strict=True):
            ours.load_state_dict(theirs.state_dict())
        self.eh_proj.weight.copy_(torch.cat([eye, eye], 1))
        self.norm.copy_(self.backbone.norm if self.residual is False else torch.full_like(self.norm, gain))
        return self


# --- files ------------------------------------------------------------------------------------------------------------


def holds_module(folder: Path) -> bool:
    """Does config.json of this folder announce an MRP module? Reads no weights."""
    return bool((read_json(folder / "config.json") or {}).get("num_nextn_predict_layers"))


def load_module(folder: Path, backbone: Transformer, weights: str | None = None) -> MRPModule:
    """A frozen module for `backbone`, on its device and in its dtype.

    `weights` is the hash of the backbone's files; a module of our own layout is refused beside any other backbone.
    Raises RequestError for that, for a folder without a module, and for shapes that do not fit.
    """
    raw, whose = read_json(folder / "config.json") or {}, model_name(folder)
    trained_on = (raw.get("backbone") or {}).get("weights")
    if trained_on and weights and trained_on != weights:
        raise RequestError(
            f"MRP module {whose} was trained on backbone weights {trained_on}, the model has {weights}: "
            "give --model the backbone it belongs to, or train a module for this one."
        )
    tensors = Tensors(folder)
    prefix = next((p for p in PREFIXES if f"{p}eh_proj.weight" in tensors.place), None)
    if prefix is None:
        raise RequestError(
            f"Folder {whose!r} holds no MRP module (no tensor {PREFIXES[0]}eh_proj.weight): give --head the "
            "folder of a trained module, or of a checkpoint that contains one."
        )
    if (raw.get("num_mrp_heads") or 1) > 1:
        raise RequestError(f"{whose} has {raw['num_mrp_heads']} MRP modules; only checkpoints with one are read.")
    numbers = {n[len(prefix) :].split(".")[1] for n in tensors.place if n.startswith(f"{prefix}layers.")}
    with torch.device("meta"):
        module = MRPModule(backbone, len(numbers), raw.get("residual"))
    official = {ours: _official(ours, backbone.config, prefix) for ours in module.state_dict()}
    wanted = [name for names in official.values() for name in names]
    tensors.check(wanted, len(numbers), prefix, ignored={f"{prefix}embed_tokens.weight"})
    state = {}
    for ours, parameter in module.state_dict().items():
        if tensors.shape(official[ours]) != parameter.shape:
            raise RequestError(
                f"MRP module {whose}: tensor {ours} has shape {tensors.shape(official[ours])}, this backbone needs "
                f"{tuple(parameter.shape)}; give --model the backbone that the module belongs to."
            )
        state[ours] = tensors.joined(official[ours], backbone.norm.device, backbone.norm.dtype)
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(False).eval()


def save_module(
    module: MRPModule, folder: str | Path, weights: str, dtype: torch.dtype = torch.bfloat16, **about
) -> Path:
    """Write the module alone in the official tensor names; `weights` is the hash of the backbone it was trained on."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for ours, tensor in module.state_dict().items():
        names = _official(ours, module.config, PREFIXES[0])
        sizes = _packed_sizes(ours, module.config) if len(names) > 1 else [tensor.shape[0]]
        for name, part in zip(names, tensor.detach().split(sizes), strict=True):
            tensors[name] = part.to(device="cpu", dtype=dtype).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "mrp",
        "num_nextn_predict_layers": len(module.layers),
        "num_mrp_heads": 1,
        "residual": module.residual,
        "backbone": {"weights": weights, "hidden_size": module.config.hidden_size},
        **about,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def _official(ours: str, config: BackboneConfig, prefix: str) -> list[str]:
    """Names in the file of one of our tensors, in the order in which they are packed."""
    if ours in OWN:
        return [prefix + (ours if ours.endswith(".weight") else f"{ours}.weight")]
    _, layer, rest = ours.split(".", 2)
    names = BACKBONES.get(config.family).layout.names[f"layers.{{}}.{rest}"]
    return [prefix + name.format(layer).removeprefix("model.") for name in names]
