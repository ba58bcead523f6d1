"""Official checkpoints in, official checkpoints out: safetensors (one file or sharded), folder or hub name.

Never runs code that comes with a checkpoint. A hub that cannot be reached is one sentence with a remedy.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.configuration import read_config
from dlmbench.backbone.descriptor import NOTHING, Told
from dlmbench.backbone.families import Family
from dlmbench.backbone.memory import check_room
from dlmbench.backbone.model import Transformer
from dlmbench.backbone.sparse_families import stacked, usual_fields
from dlmbench.backbone.tensors import HARMLESS, Tensors, tensor_names
from dlmbench.backbone.tokenizer import PlainTokenizer, plain_tokenizer
from dlmbench.errors import RequestError
from dlmbench.files import LARGE, TOKENIZER_FILES, broken, model_name, no_file, read_json, tell, weight_files
from dlmbench.files import weights_hash as weights_hash  # belongs to what is saved and loaded here
from dlmbench.registry import BACKBONES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WEIGHT_FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja", "tokenizer.model")


def checkpoint_folder(name: str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint; a hub name is fetched (or found in the hub's cache) first.

    Raises RequestError when neither a folder of that name exists nor the hub can be reached.
    """
    path = Path(name).expanduser()
    return path if path.is_dir() else _snapshot(name, revision, tuple(WEIGHT_FILES))


def tokenizer_folder(name: str, revision: str | None = None) -> Path:
    """The same with the files of the tokenizer alone, for a model that runs elsewhere."""
    path = Path(name).expanduser()
    files = ("config.json", *(f"{start}*" for start in TOKENIZER_FILES))
    return path if path.is_dir() else _snapshot(name, revision, files)


@lru_cache(maxsize=32)  # asked for many times a run; a name means one snapshot for as long as the process lives
def _snapshot(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files), etag_timeout=10))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise RequestError(
            f"Model {name!r} is neither a folder nor in the hub's cache, and the hub did not deliver it "
            f"({type(error).__name__}). Connect to the network, or download it elsewhere and give its folder."
        ) from error


def load_checkpoint(
    name: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
    revision: str | None = None, told: Told = NOTHING,
) -> Transformer:  # fmt: skip
    """A frozen network from an official checkpoint, in evaluation mode, used as its files and `told` say.

    At no time are there two copies of more than one tensor, and of one expert where experts are stored one by one.
    Raises RequestError for what `check_checkpoint` refuses, and for weights that are larger than the device.
    """
    folder = checkpoint_folder(str(name), revision)
    model, tensors, official = _prepared(folder, told)
    check_room(model_name(folder), model.config.parameters * dtype.itemsize, device, dtype)
    size = sum(file.stat().st_size for file in weight_files(folder))
    if size > LARGE:
        tell(f"loading {size / 1e9:.1f} GB of {model_name(folder)}")
    shapes = {ours: weight.shape for ours, weight in model.state_dict().items()}
    state = {
        ours: tensors.joined(names, device, _dtype_of(ours, dtype)).view(shapes[ours])
        for ours, names in official.items()
    }
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def _dtype_of(ours: str, dtype: torch.dtype) -> torch.dtype:
    """Routers stay in float32 at least, for near ties decide which experts are chosen."""
    routes = ours.endswith((".experts.router", ".experts.bias"))
    return torch.promote_types(dtype, torch.float32) if routes else dtype


def check_checkpoint(folder: Path, told: Told = NOTHING) -> None:
    """Judge a folder by its configuration and the headers of its weights, before anything large is read.

    Raises RequestError when it is incomplete, quantised, holds tensors that the network does not have, or one of
    another shape than the configuration says.
    """
    if read_config(folder, told)[0].num_layers:  # an oracle has none, and no tensors
        _prepared(folder, told)


def compare_tensors(folder: Path, told: Told = NOTHING) -> tuple[list[str], list[str]] | None:
    """Official names that a folder lacks, and those that the network would not read, by its index where the weights are
    not here; None where there is neither. Raises RequestError for a configuration that cannot be run."""
    config, family = read_config(folder, told)
    names = tensor_names(folder)
    if names is None:
        return None
    with torch.device("meta"):
        ours = Transformer(config).state_dict()
    wanted = {name for one in ours for name in _in_files(one, config, family, names)}
    tied = set(family.layout.names["head.weight"]) if config.tie_embeddings else set()
    left = (name for name in names - wanted - tied if not HARMLESS.fullmatch(name))
    return sorted(wanted - names), sorted(left)


def _prepared(folder: Path, told: Told) -> tuple[Transformer, Tensors, dict[str, list[str]]]:
    """A network without weights, the folder's tensors, and the official names that each of its own comes from."""
    config, family = read_config(folder, told)
    with torch.device("meta"):
        model = Transformer(config)
    tensors = Tensors(folder)
    official = {ours: _in_files(ours, config, family, tensors.place) for ours in model.state_dict()}
    wanted = [name for names in official.values() for name in names]
    tensors.check(wanted, config.num_layers, ignored=_tied_copies(config, family, tensors))
    for ours, parameter in model.state_dict().items():
        names, expected = official[ours], tuple(parameter.shape)
        shape = tensors.shape(names)
        one_by_one = len(shape) < len(expected)  # experts
        fits = shape == ((expected[0] * expected[1], *expected[2:]) if one_by_one else expected)
        if not fits or (len(names) > 1 and tensors.rows(names) != _packed_sizes(ours, config, len(names))):
            raise RequestError(
                f"{model_name(folder)}: tensor {ours} has shape {shape}, config.json says {expected}; the two files do "
                "not belong together."
            )
    return model, tensors, official


def _official(ours: str, config: BackboneConfig, family: Family) -> list[str]:
    """The official names that one of our tensors is packed from, in order; experts one by one."""
    layer, names = _pattern(ours, family)
    experts = range(config.experts.count) if config.experts and "{expert}" in names[0] else (0,)
    return [name.format(layer, expert=expert) for expert in experts for name in names]


def _in_files(ours: str, config: BackboneConfig, family: Family, there: Collection[str]) -> list[str]:
    """The same as the files have them, which may stack experts."""
    layer, names = _pattern(ours, family)
    if "{expert}" in names[0]:
        for some in stacked(names):
            found = [name.format(layer) for name in some]
            if all(name in there for name in found):
                return found
    return _official(ours, config, family)


def _pattern(ours: str, family: Family) -> tuple[str, tuple[str, ...]]:
    """Number of the layer that one of our tensors belongs to ("" for none), and its names as the family has them."""
    layer = ours.split(".")[1] if ours.startswith("layers.") else ""
    pattern = ours.replace(f"layers.{layer}.", "layers.{}.", 1) if layer else ours
    return layer, family.layout.names[pattern]


def _tied_copies(config: BackboneConfig, family: Family, tensors: Tensors) -> list[str]:
    """A head that was saved although it is tied to the embedding; it is refused when it differs from it."""
    (head,), (embedding,) = family.layout.names["head.weight"], family.layout.names["embedding.weight"]
    if not config.tie_embeddings or head not in tensors.place:
        return []
    if embedding in tensors.place and not torch.equal(tensors.get(head), tensors.get(embedding)):
        raise RequestError(
            f"{tensors.name}: config.json ties the head to the embedding, and the files hold a {head} that differs: "
            "set tie_word_embeddings to false there to use it, or remove the tensor."
        )
    return [head]


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
    family, tensors = BACKBONES.get(model.config.family), dict[str, torch.Tensor]()
    for ours, tensor in model.state_dict().items():
        official = _official(ours, model.config, family)
        if tensor.dim() > 2:  # a stack of experts
            tensor = tensor.flatten(0, 1)
        sizes = _packed_sizes(ours, model.config, len(official)) if len(official) > 1 else [tensor.shape[0]]
        tensors |= zip(official, tensor.split(sizes), strict=True)
    return tensors


def _packed_sizes(name: str, config: BackboneConfig, parts: int = 2) -> list[int]:
    """Rows of the official tensors that one of ours is packed from."""
    if ".qkv." in name:
        return [n * config.head_dim for n in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    if config.experts is None or ".experts." not in name:
        return [config.intermediate_size] * parts
    if name.endswith(".down"):
        return [config.hidden_size] * parts
    return [config.experts.shared_width if ".shared_" in name else config.experts.width] * parts


def official_config(config: BackboneConfig, dtype: torch.dtype) -> dict:
    """What the family's config.json says of such a network."""
    family = BACKBONES.get(config.family)
    raw = {
        "architectures": list(family.architectures[:1]),
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
    if config.rope_scaling:
        raw["rope_scaling"] = dict(config.rope_scaling)
    if config.mask_id is not None:
        raw["mask_token_id"] = config.mask_id
    if config.block_length is not None:
        raw[family.block_field] = config.block_length
    return family.layout.spell(raw | usual_fields(config))


def load_tokenizer(
    name: str | Path, revision: str | None = None, plain: bool = False
) -> PreTrainedTokenizerBase | PlainTokenizer:
    """The checkpoint's tokenizer by transformers, without running code from the checkpoint; with `plain` without
    transformers where its files say all (`plain_tokenizer`).

    Released checkpoints may name a class of their own (``auto_map``), which is neither needed nor loaded: where
    transformers does not know it, tokenizer.json says all, else the family's class reads the same files. Raises
    RequestError for a tokenizer whose vocabulary is not there.
    """
    folder = checkpoint_folder(str(name), revision)
    check_vocabulary(folder)
    tokenizer = (plain_tokenizer(folder) if plain else None) or _from_files(folder)
    ids = tokenizer.encode("word", add_special_tokens=False)
    if not set(ids) - set(tokenizer.added_tokens_decoder):
        raise RequestError(
            f"The tokenizer of {model_name(folder)} has no vocabulary ({len(tokenizer)} special tokens): put the "
            "checkpoint's tokenizer files (tokenizer.json, or vocab.json and merges.txt) beside its weights."
        )
    return tokenizer


def check_vocabulary(folder: Path) -> None:
    """Refuse, without building the tokenizer, files that stand for others, and half of a pair, with which transformers
    would go on."""
    for file in (folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt", folder / "tokenizer.model"):
        if file.is_file():
            with file.open("rb") as stream:
                if fault := no_file(stream.read(200)):
                    raise broken(file, fault)
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return
    pair = (folder / "vocab.json", folder / "merges.txt")
    absent = [file.name for file in pair if not file.is_file()]
    if len(absent) == 1:
        raise RequestError(
            f"The tokenizer of {model_name(folder)} lacks {absent[0]}: put it beside the checkpoint's other files."
        )
    if not absent:
        tokens, merges = len(read_json(pair[0]) or ()), pair[1].read_bytes().count(b"\n")
        if merges < 0.9 * (tokens - 256):  # of byte-level pairs every token but the bytes is made by one merge
            raise broken(pair[1], f"is cut off ({merges} merges for {tokens} tokens): fetch it again")


def _from_files(folder: Path) -> PreTrainedTokenizerBase:
    import warnings

    import transformers
    from transformers.utils import logging

    own = (read_json(folder / "tokenizer_config.json") or {}).get("tokenizer_class")
    cls = transformers.AutoTokenizer if isinstance(own, str) and hasattr(transformers, own) else _known_class(folder)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a model type that transformers does not know is our business, not the tokenizer's
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return cls.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a library makes of files that are cut off or missing
        raise RequestError(
            f"No tokenizer could be read from {model_name(folder)!r} ({' '.join(str(error).split())[:120]}); "
            "put the checkpoint's tokenizer files beside its weights."
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _known_class(folder: Path) -> type[PreTrainedTokenizerBase]:
    """A class of transformers for files whose own class it does not know."""
    import transformers

    raw = read_json(folder / "config.json") or {}
    families = (BACKBONES.get(one) for one in BACKBONES.names())
    family = next((one for one in families if raw.get("model_type") in one.model_types), None)
    if (folder / "tokenizer.json").is_file() or family is None:
        return transformers.PreTrainedTokenizerFast
    return getattr(transformers, family.descriptor.tokenizer or "PreTrainedTokenizerFast")
