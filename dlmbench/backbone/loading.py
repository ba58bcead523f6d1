"""Official checkpoints in, official checkpoints out: safetensors (one file or sharded), folder or hub name.

Never runs code that comes with a checkpoint. A hub that cannot be reached is one sentence with a remedy.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.families import Family
from dlmbench.backbone.model import Transformer
from dlmbench.errors import RequestError
from dlmbench.registry import BACKBONES

WEIGHT_FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja", "tokenizer.model")


def checkpoint_folder(name: str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint; a hub name is fetched (or found in the hub's cache) first.

    Raises RequestError when neither a folder of that name exists nor the hub can be reached.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(WEIGHT_FILES), etag_timeout=10))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise RequestError(
            f"Model {name!r} is neither a folder nor in the hub's cache, and the hub did not deliver it "
            f"({type(error).__name__}). Connect to the network, or download it elsewhere and give its folder."
        ) from error


def read_config(folder: Path) -> tuple[BackboneConfig, Family]:
    """Configuration and family of a checkpoint folder. Raises RequestError for a layout that no family reads."""
    file = folder / "config.json"
    if not file.is_file():
        raise RequestError(f"Model folder {folder.name!r} has no config.json; give the folder of a checkpoint.")
    raw = json.loads(file.read_text())
    family = _family(raw.get("model_type", ""))
    config = family.read(raw)
    generation = folder / "generation_config.json"
    if generation.is_file():  # its list of end tokens is the complete one
        eos = json.loads(generation.read_text()).get("eos_token_id")
        if eos is not None:
            config = replace(config, eos_ids=tuple(eos) if isinstance(eos, list) else (eos,))
    return config, family


def _family(model_type: str) -> Family:
    for name in BACKBONES.names():
        family = BACKBONES.get(name)
        if model_type in family.model_types:
            return family
    raise RequestError(
        f"model_type {model_type!r} belongs to no backbone family; known are "
        f"{', '.join(t for n in BACKBONES.names() for t in BACKBONES.get(n).model_types)}."
    )


def load_checkpoint(
    name: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32, revision: str | None = None
) -> Transformer:
    """A frozen network from an official checkpoint, in evaluation mode.

    Raises RequestError when the folder is incomplete or a tensor has another shape than the configuration says.
    """
    folder = checkpoint_folder(str(name), revision)
    config, family = read_config(folder)
    with torch.device("meta"):
        model = Transformer(config)
    tensors = _Tensors(folder)
    state = {}
    for ours in model.state_dict():
        layer = ours.split(".")[1] if ours.startswith("layers.") else ""
        pattern = ours.replace(f"layers.{layer}.", "layers.{}.", 1) if layer else ours
        parts = [tensors.get(official.format(layer)) for official in family.names[pattern]]
        state[ours] = (parts[0] if len(parts) == 1 else torch.cat(parts)).to(device=device, dtype=dtype)
    for ours, parameter in model.state_dict().items():
        if state[ours].shape != parameter.shape:
            raise RequestError(
                f"{folder.name}: tensor {ours} has shape {tuple(state[ours].shape)}, config.json says "
                f"{tuple(parameter.shape)}; the two files do not belong together."
            )
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


class _Tensors:
    """Tensors of a folder by name, whichever shard they are in."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = sorted(folder.glob("*.safetensors"))
        if not self.files:
            raise RequestError(
                f"Model folder {folder.name!r} has no .safetensors file; convert the checkpoint to safetensors first."
            )
        self.place = {}
        for file in self.files:
            with safe_open(file, framework="pt") as handle:
                self.place.update(dict.fromkeys(handle.keys(), file))

    def get(self, name: str) -> torch.Tensor:
        if name not in self.place:
            raise RequestError(f"{self.folder.name}: tensor {name} is missing; the download may be incomplete.")
        with safe_open(self.place[name], framework="pt") as handle:
            return handle.get_tensor(name)


def weights_hash(folder: Path) -> str:
    """sha256 over the names and bytes of the folder's safetensors files, as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def save_checkpoint(model: Transformer, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write config.json, generation_config.json and model.safetensors in the family's official layout."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    tensors = {name: part.to(device="cpu", dtype=dtype).contiguous() for name, part in official_tensors(model).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    raw = official_config(config, dtype)
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    eos = list(config.eos_ids)
    generation = {"eos_token_id": eos[0] if len(eos) == 1 else eos, "pad_token_id": config.pad_id}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    return folder


def official_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """A network's weights under the family's official names: views of what is packed here."""
    family, tensors = BACKBONES.get(model.config.family), {}
    for ours, tensor in model.state_dict().items():
        layer = ours.split(".")[1] if ours.startswith("layers.") else ""
        official = family.names[ours.replace(f"layers.{layer}.", "layers.{}.", 1) if layer else ours]
        sizes = _packed_sizes(ours, model.config) if len(official) > 1 else [tensor.shape[0]]
        for name, part in zip(official, tensor.split(sizes), strict=True):
            tensors[name.format(layer)] = part
    return tensors


def _packed_sizes(name: str, config: BackboneConfig) -> list[int]:
    if ".qkv." in name:
        return [n * config.head_dim for n in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    return [config.intermediate_size] * 2


def official_config(config: BackboneConfig, dtype: torch.dtype) -> dict:
    """What the family's config.json says of such a network."""
    family = BACKBONES.get(config.family)
    raw = {
        "architectures": list(family.architectures),
        "model_type": family.model_types[0],
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        "eos_token_id": config.eos_ids[0] if config.eos_ids else None,
        "pad_token_id": config.pad_id,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if config.mask_id is not None:
        raw["mask_token_id"] = config.mask_id
    return family.spell(raw)


def load_tokenizer(name: str | Path, revision: str | None = None):
    """The checkpoint's tokenizer by transformers, without running code from the checkpoint.

    Released checkpoints may name custom code (``auto_map``); it is neither needed nor loaded.
    """
    import warnings

    from transformers import AutoTokenizer
    from transformers.utils import logging

    folder = checkpoint_folder(str(name), revision)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a model type that transformers does not know is our business, not the tokenizer's
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"No tokenizer could be read from {folder.name!r} ({' '.join(str(error).split())[:120]}); "
            "put the checkpoint's tokenizer files beside its weights."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
