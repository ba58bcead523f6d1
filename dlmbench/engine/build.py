"""From a run's spec to a ready engine: load every network once, give each its role."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dlmbench.backbone import Transformer, load_checkpoint, load_tokenizer, weights_hash
from dlmbench.backbone.anchored import AnchoredNetwork
from dlmbench.backbone.bidirectional import Bidirectional, CachePolicy
from dlmbench.backbone.configuration import describe, read_config, tokenizer_mask_id
from dlmbench.backbone.descriptor import NOTHING, Told
from dlmbench.backbone.loading import check_checkpoint, check_vocabulary, checkpoint_folder
from dlmbench.backbone.network import Network
from dlmbench.decoders.predict import Sampling
from dlmbench.engine.graphs import first_line
from dlmbench.engine.loop import Engine
from dlmbench.errors import RequestError, RunError
from dlmbench.files import checkpoint_hash, model_name, network_files, read_json, stamps, tell, tokenizer_files
from dlmbench.models.compatibility import check_blocks
from dlmbench.models.presets import Preset, resolve
from dlmbench.registry import BACKBONES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
END_OF_TURN = "<|eot_id|>"  # LLaDA's; the switch for EOS covers both
END_TOKENS = (  # what ends a document or a turn, and what a model pads its answer with, in the families' own words
    "<|endoftext|>", "<|im_end|>",  # Qwen, SDAR, Dream; the first also LLaDA's
    END_OF_TURN, "<|end_of_text|>",  # LLaDA, Llama 3
    "<|dlm_pad|>",  # DiffuCoder
)  # fmt: skip


KEPT = 4  # networks in a CPU's memory; a GPU keeps those of one cell


class _Place(NamedTuple):
    """Which network: a folder as its files stand now, used as it is told, on a device in a dtype."""

    folder: Path
    files: tuple
    device: str
    dtype: str
    told: Told = NOTHING


_networks: dict[_Place, Transformer] = {}  # the one used last is the last


def _model(place: _Place) -> Transformer:
    """The network of a place, loaded once."""
    network = _networks.pop(place, None)
    _networks[place] = network or load_checkpoint(place.folder, place.device, DTYPES[place.dtype], None, place.told)
    return _networks[place]


def _make_room(needed: Iterable[_Place], device: str) -> None:
    """Drop networks before others are loaded: on a GPU all that the cell does not need, else the oldest beyond KEPT."""
    needed = set(needed)
    idle = [place for place in _networks if place not in needed]
    kept = 0 if device.startswith("cuda") else max(KEPT - len(needed), 0)
    for place in idle[: len(idle) - kept]:
        del _networks[place]
    if device.startswith("cuda"):
        gc.collect()  # whatever still holds a network in a cycle
        torch.cuda.empty_cache()


@lru_cache(maxsize=8)
def _tokenizer(folder: Path, files: tuple) -> Any:
    return load_tokenizer(folder)


def network_hashes(checked) -> dict[str, str]:
    """role -> hash of its weights and configurations, without loading them into memory. `checked` is what
    `RunSpec.check` returns.

    Raises RequestError, before a large file is read, for checkpoints that cannot be run.
    """
    _check_files(checked)
    return {role: _identity(preset) for role, preset in _presets(checked).items()}


def _identity(preset: Preset) -> str:
    """Hash of a checkpoint's files and of what is told of it, which makes other networks of the same files."""
    files, told = checkpoint_hash(_folder(preset)), [one.said() for one in preset.told[:2]]
    return hashlib.sha256(f"{files} {told}".encode()).hexdigest() if any(told) else files


def _presets(checked) -> dict[str, Preset]:
    helpers = {role: resolve(name) for role, name in checked.companions.items()}
    return {"target": checked.preset, **helpers}


def _check_files(checked) -> None:
    """Refuse what can be seen in configurations, then in the tokenizer's files, then in the headers of weights."""
    presets = {role: preset for role, preset in _presets(checked).items() if role != "head"}
    configs = {role: read_config(_folder(preset), preset.told)[0] for role, preset in presets.items()}
    _check_attention(checked, configs["target"])
    target = checked.preset
    check_vocabulary(checkpoint_folder(target.tokenizer_location, target.revision))
    for preset in presets.values():
        check_checkpoint(_folder(preset), preset.told)


def tokenizer_of(model: str | Preset) -> Any:
    """The tokenizer that belongs to a model; a configuration that cannot be run is refused before.

    It begins raw prompts with BOS where the model was evaluated so.
    """
    preset = resolve(model) if isinstance(model, str) else model
    folder = _folder(preset)
    read_config(folder, preset.told)
    place = checkpoint_folder(preset.tokenizer_location, preset.revision)
    tokenizer = _tokenizer(place, stamps(tokenizer_files(place)))
    if begins := describe(folder, preset.told).descriptor.bos_on_raw_prompts:
        tokenizer.add_bos_token = begins
    return tokenizer


def _folder(preset: Preset) -> Path:
    return checkpoint_folder(preset.location, preset.revision)


def end_ids(config, tokenizer) -> tuple[int, ...]:
    """Tokens that end a row: the configuration's own first, the tokenizer's EOS, and its special tokens that say so."""
    special = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = (special.get(word) for word in (tokenizer.eos_token, *END_TOKENS))
    ids = dict.fromkeys([*config.eos_ids, *(id for id in found if id is not None)])
    return tuple(id for id in ids if id < config.vocab_size and id != config.mask_id)


def build(spec, *, lag: int | None = None) -> Engine:
    """An engine for one cell. `spec` is a `RunSpec`; models and tokenizers are loaded once a process.

    Cheap refusals come first, and the tokenizer before weights. Nothing is hashed, unless a head says beside which
    weights it was trained. Raises RequestError for whatever the spec's own check refuses, and for checkpoints that
    cannot be read; RunError when memory ends while they are loaded.
    """
    checked = spec.check()
    spec = spec.resolved()
    _check_files(checked)
    tokenizer = tokenizer_of(checked.preset)  # before any weight: it may be missing
    nets = _load(checked, spec)
    _note_mask(_folder(checked.preset), nets["target"].config.mask_id)
    target = nets["target"]
    own = target.config  # the switch for EOS is defined on what it names, a row ends at more
    target.config = replace(own, eos_ids=end_ids(own, tokenizer))
    return Engine(
        nets,
        checked.decoder(checked.config),
        tokenizer,
        batch_size=spec.batch_size,
        sampling=_sampling(checked, own, tokenizer),
        lag=lag,
        fill_after_eos=checked.axes.sampling.fill_after_eos,
        fixed=_fixed(checked.fixed, tokenizer),
        description=_describe(checked, spec, nets),
    )


def _load(checked, spec) -> dict[str, Network]:
    """A network for every role. Raises RunError when the memory ends."""
    presets = _presets(checked)
    folders = {role: _folder(preset) for role, preset in presets.items()}
    places = {
        role: _Place(folder, stamps(network_files(folder)), spec.device, spec.dtype, presets[role].told)
        for role, folder in folders.items()
        if role != "head"
    }
    nets: dict[str, Network] = {}
    try:
        _make_room(places.values(), spec.device)
        for role, folder in folders.items():
            if role == "head":
                nets[role] = _head(checked, nets["target"], folder, folders["target"])
            else:
                nets[role] = _network(role, _model(places[role]), checked)
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason = first_line(error) or "no more is given"
    else:
        return nets
    nets.clear()  # outside of the handler, whose traceback holds what was half loaded
    _networks.clear()
    names = " and ".join(dict.fromkeys(preset.name for preset in presets.values()))
    raise RunError(
        f"The memory of {spec.device} ended while {names} was loaded in {spec.dtype} ({reason}): take a smaller model, "
        "a 16-bit --dtype, or a device with more memory."
    )


def _head(checked, target: Network, folder: Path, backbone: Path) -> Network:
    """A trained head; the backbone is hashed only for one that knows beside which weights it was trained."""
    record = (read_json(folder / "config.json") or {}).get("backbone") or {}
    weights = weights_hash(backbone) if record.get("weights") else None
    return checked.decoder.head_network(target, folder, weights)


@lru_cache(maxsize=8)
def _note_mask(folder: Path, mask_id: int | None) -> None:
    """Say, once, where two files disagree about the mask; config.json is followed, as the authors' code does."""
    theirs = tokenizer_mask_id(folder)
    if mask_id is not None and theirs not in (None, mask_id):
        tell(
            f"note    {model_name(folder)}: the mask id is {mask_id} by config.json, which is used, and {theirs} by "
            "its tokenizer"
        )


def _check_attention(checked, config) -> None:
    """A hub name tells its family only when its configuration is there: look again, before the weights are read."""
    if config.attention not in checked.decoder.attention:
        raise RequestError(
            f"Method {checked.decoder.name} works with {' or '.join(checked.decoder.attention)} attention and "
            f"{checked.spec.model} has {config.attention}: choose another --model or --method."
        )
    check_blocks(checked.preset, config, checked.decoder)
    if config.attention == "block_causal" and not (checked.spec.block_length or checked.preset.block_length):
        known = f" ({config.block_length} by its config.json)" if config.block_length else ""
        raise RequestError(f"{checked.preset.name} attends by blocks: give their length with --block-length{known}.")
    if checked.spec.cache != "none" and config.attention != "full":
        raise RequestError(
            f"Cache policy {checked.spec.cache} approximates full attention, and {checked.spec.model} has "
            f"{config.attention} attention, whose cache is exact already: leave --cache out."
        )


def _network(role: str, model, checked) -> Network:
    """Full attention gets the run's cache policy and guidance; guides and drafts run without."""
    if model.config.attention != "full":
        block_length = 1 if model.config.attention == "causal" else checked.block_length
        kind = AnchoredNetwork if model.config.attention == "block_causal" and model.config.shift else Network
        return kind(role, model, block_length, checked.spec.store)
    if role != "target":
        return Bidirectional(role, model, checked.block_length)
    policy = CachePolicy(checked.spec.cache, **asdict(checked.axes.cache))
    return Bidirectional(role, model, checked.block_length, policy, checked.axes.sampling.guidance)


def _sampling(checked, config, tokenizer) -> Sampling:
    """What is drawn and scored. LLaDA scores without temperature, Dream after its filters."""
    spec = checked.spec
    confidence = BACKBONES.get(config.family).descriptor.confidence or "full"
    if checked.axes.sampling.filtered:
        confidence = "filtered"
    banned = config.eos_ids if checked.eos == "never" else ()
    last = ()
    if checked.eos == "last":
        eot = tokenizer.convert_tokens_to_ids(END_OF_TURN) if END_OF_TURN in tokenizer.get_vocab() else None
        last = (*config.eos_ids, *([] if eot is None else [eot]))
    return Sampling(spec.temperature, spec.top_k, spec.top_p, confidence, banned, last)


def _fixed(answer, tokenizer) -> tuple[tuple[int, int], ...]:
    """A task's answer marker as (offset, token) pairs."""
    if not answer:
        return ()
    ids = tokenizer.encode(answer["text"], add_special_tokens=False)
    return tuple((answer["position"] + i, token) for i, token in enumerate(ids))


def _describe(checked, spec, nets: dict[str, Network]) -> dict[str, Any]:
    return {
        "model": checked.preset.name,
        "parameters": {role: net.config.parameters for role, net in nets.items()},
        "block_length": nets["target"].block_length,
        "decoder": {"name": checked.decoder.name, "version": checked.decoder.version},
        "dtype": spec.dtype,
        "device": torch.cuda.get_device_name(spec.device) if spec.device.startswith("cuda") else "cpu",
        "batch_size": spec.batch_size,
        "store": spec.store,
    }
