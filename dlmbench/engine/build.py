"""From a resolved run to a ready engine: load every network once, give each its role."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from dlmbench.backbone import Transformer, load_checkpoint, load_tokenizer, weights_hash
from dlmbench.backbone.anchored import AnchoredNetwork
from dlmbench.backbone.bidirectional import Bidirectional, CachePolicy
from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.configuration import describe, read_config, tokenizer_mask_id
from dlmbench.backbone.descriptor import NOTHING, Told
from dlmbench.backbone.loading import check_checkpoint, check_vocabulary, checkpoint_folder, tokenizer_folder
from dlmbench.backbone.network import Network
from dlmbench.decoders.predict import Sampling
from dlmbench.engine.engine import Engine
from dlmbench.engine.graphs import first_line
from dlmbench.engine.text import Tokenizer
from dlmbench.errors import RunError
from dlmbench.files import checkpoint_hash, model_name, network_files, read_json, stamps, tell, tokenizer_files
from dlmbench.models.compatibility import check_blocks
from dlmbench.models.presets import Preset, resolve
from dlmbench.oracle.network import Oracle
from dlmbench.registry import BACKBONES
from dlmbench.request.resolved import ResolvedRun
from dlmbench.request.rules import check_attention, check_block_length, check_cache

if TYPE_CHECKING:
    from dlmbench.heads.policy import PolicyConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
END_OF_TURN = "<|eot_id|>"  # LLaDA's; the switch for EOS covers both
END_TOKENS = (  # what ends a document or a turn, and what a model pads its answer with, in the families' own words
    "<|endoftext|>", "<|im_end|>",  # Qwen, SDAR, Dream; the first also LLaDA's
    END_OF_TURN, "<|end_of_text|>",  # LLaDA, Llama 3
    "<|role_end|>",  # LLaDA2, LLaDA-MoE
    "<|dlm_pad|>",  # DiffuCoder
)  # fmt: skip


KEPT = 4  # networks in a CPU's memory; a GPU keeps those of one run


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
    """Drop networks before others are loaded: on a GPU all that the run does not need, else the oldest beyond KEPT."""
    needed = set(needed)
    idle = [place for place in _networks if place not in needed]
    kept = 0 if device.startswith("cuda") else max(KEPT - len(needed), 0)
    for place in idle[: len(idle) - kept]:
        del _networks[place]
    if device.startswith("cuda"):
        gc.collect()  # whatever still holds a network in a cycle
        torch.cuda.empty_cache()


@lru_cache(maxsize=8)
def _tokenizer(folder: Path, files: tuple, as_it_is: bool) -> Tokenizer:
    """`as_it_is`: nothing will be told to it, so that a plain one does."""
    return load_tokenizer(folder, plain=as_it_is)


def network_hashes(run: ResolvedRun) -> dict[str, str]:
    """role -> hash of its weights and configurations, without loading them into memory.

    Raises RequestError, before a large file is read, for checkpoints that cannot be run.
    """
    _check_files(run)
    ideal = {name: value for name, value in run.shared.chosen().items() if name.startswith("oracle.")}
    return {role: _identity(preset, ideal if role == "target" else {}) for role, preset in _presets(run).items()}


def _identity(preset: Preset, ideal: Mapping[str, object]) -> str:
    """Hash of a checkpoint's files and of what is told of it, which makes other networks of the same files; so do the
    options of an ideal model."""
    files, told = checkpoint_hash(_folder(preset)), [one.said() for one in preset.told[:2]]
    whole = f"{files} {told}" + (f" {sorted(ideal.items())}" if ideal else "")
    return hashlib.sha256(whole.encode()).hexdigest() if any(told) or ideal else files


def _presets(run: ResolvedRun) -> dict[str, Preset]:
    return {"target": run.preset, **{role: resolve(name) for role, name in run.companions.items()}}


def _check_files(run: ResolvedRun) -> None:
    """Refuse what can be seen in configurations, then in the tokenizer's files, then in the headers of weights."""
    presets = {role: preset for role, preset in _presets(run).items() if role != "head"}
    configs = {role: read_config(_folder(preset), preset.told)[0] for role, preset in presets.items()}
    check_attention(run.spec, run.preset, run.decoder, configs["target"].attention)  # a hub name did not tell before
    check_blocks(run.preset, configs["target"], run.decoder)
    check_block_length(run.spec, run.preset, configs["target"])
    check_cache(run.spec, run.preset, run.decoder, configs["target"].attention)
    check_vocabulary(checkpoint_folder(run.preset.tokenizer_location, run.preset.revision))
    for preset in presets.values():
        check_checkpoint(_folder(preset), preset.told)


def tokenizer_of(model: str | Preset) -> Tokenizer:
    """The tokenizer that belongs to a model; a configuration that cannot be run is refused before.

    It begins raw prompts with BOS where the model was evaluated so, and has the model's chat markup where its own files
    have none.
    """
    preset = resolve(model) if isinstance(model, str) else model
    folder = _folder(preset)
    read_config(folder, preset.told)
    place = checkpoint_folder(preset.tokenizer_location, preset.revision)
    return _tokenizer_in(place, preset, describe(folder, preset.told).descriptor.bos_on_raw_prompts)


def tokenizer_alone(preset: Preset) -> Tokenizer:
    """The same for a model that runs elsewhere: nothing else of its files is fetched or read."""
    flags, usual, _ = preset.told
    begins = usual.bos_on_raw_prompts if flags.bos_on_raw_prompts is None else flags.bos_on_raw_prompts
    return _tokenizer_in(tokenizer_folder(preset.tokenizer_location, preset.revision), preset, begins)


def _tokenizer_in(place: Path, preset: Preset, begins: bool | None) -> Tokenizer:
    tokenizer = _tokenizer(place, stamps(tokenizer_files(place)), begins is None and not preset.chat)
    if begins is not None:
        tokenizer.add_bos_token = begins
    if preset.chat and not tokenizer.chat_template:
        tokenizer.chat_template = preset.chat
    return tokenizer


def _folder(preset: Preset) -> Path:
    return checkpoint_folder(preset.location, preset.revision)


def end_ids(config: BackboneConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end a row: the configuration's own first, the tokenizer's EOS, and its special tokens that say so."""
    special = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = (special.get(word) for word in (tokenizer.eos_token, *END_TOKENS))
    ids = dict.fromkeys([*config.eos_ids, *(id for id in found if id is not None)])
    return tuple(id for id in ids if id < config.vocab_size and id != config.mask_id)


def build(run: ResolvedRun, *, lag: int | None = None) -> Engine:
    """An engine for one run; models and tokenizers are loaded once a process.

    Cheap refusals come first, and the tokenizer before weights. Nothing is hashed, unless a head says beside which
    weights it was trained. Raises RequestError for checkpoints that cannot be read or do not fit the method, RunError
    when memory ends while they are loaded.
    """
    _check_files(run)
    tokenizer = tokenizer_of(run.preset)  # before any weight: it may be missing
    nets = _load(run)
    _note_mask(_folder(run.preset), nets["target"].config.mask_id)
    target = nets["target"]
    own = target.config  # the switch for EOS is defined on what it names, a row ends at more
    target.config = replace(own, eos_ids=end_ids(own, tokenizer))
    return Engine(
        nets,
        run.decoder(run.config),
        tokenizer,
        batch_size=run.batch_size,
        sampling=_sampling(run, own, tokenizer),
        lag=lag,
        fill_after_eos=run.shared.sampling.fill_after_eos,
        fixed=_fixed(run.fixed, tokenizer),
        description=_describe(run, nets),
    )


def _load(run: ResolvedRun) -> dict[str, Network]:
    """A network for every role. Raises RunError when the memory ends."""
    presets = _presets(run)
    folders = {role: _folder(preset) for role, preset in presets.items()}
    places = {
        role: _Place(folder, stamps(network_files(folder)), run.device, run.dtype, presets[role].told)
        for role, folder in folders.items()
        if role != "head"
    }
    nets: dict[str, Network] = {}
    try:
        _make_room(places.values(), run.device)
        for role, folder in folders.items():
            if role == "head":
                nets[role] = _head(run, nets["target"], folder, folders["target"])
            elif presets[role].family == "oracle":
                config = read_config(folder, presets[role].told)[0]
                nets[role] = Oracle(config, run.block_length, run.shared.oracle, role, run.device)
            else:
                nets[role] = _network(role, _model(places[role]), run)
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason = first_line(error) or "no more is given"
    else:
        return nets
    nets.clear()  # outside of the handler, whose traceback holds what was half loaded
    _networks.clear()
    names = " and ".join(dict.fromkeys(preset.name for preset in presets.values()))
    raise RunError(
        f"The memory of {run.device} ended while {names} was loaded in {run.dtype} ({reason}): take a smaller model, "
        "a 16-bit --dtype, or a device with more memory."
    )


def _head(run: ResolvedRun, target: Network, folder: Path, backbone: Path) -> Network:
    """A trained head; the backbone is hashed only for one that knows beside which weights it was trained."""
    record = (read_json(folder / "config.json") or {}).get("backbone") or {}
    weights = weights_hash(backbone) if record.get("weights") else None
    return run.decoder.head_network(target, folder, weights)


@lru_cache(maxsize=8)
def _note_mask(folder: Path, mask_id: int | None) -> None:
    """Say, once, where two files disagree about the mask; config.json is followed, as the authors' code does."""
    theirs = tokenizer_mask_id(folder)
    if mask_id is not None and theirs not in (None, mask_id):
        tell(
            f"note    {model_name(folder)}: the mask id is {mask_id} by config.json, which is used, and {theirs} by "
            "its tokenizer"
        )


def _network(role: str, model: Transformer, run: ResolvedRun) -> Network:
    """Full attention gets the run's cache policy and guidance; guides and drafts run without."""
    if model.config.attention != "full":
        block_length = 1 if model.config.attention == "causal" else run.block_length
        kind = AnchoredNetwork if model.config.attention == "block_causal" and model.config.shift else Network
        assert run.spec.store is not None  # a resolved run's is settled
        return kind(role, model, block_length, run.spec.store)
    if role != "target":
        return Bidirectional(role, model, run.block_length)
    policy = CachePolicy(run.spec.cache, **asdict(run.shared.cache))
    return Bidirectional(role, model, run.block_length, policy, run.shared.sampling.guidance)


def _sampling(run: ResolvedRun, config: BackboneConfig, tokenizer: Tokenizer) -> Sampling:
    """What is drawn and scored. LLaDA scores without temperature, Dream after its filters."""
    spec = run.spec
    confidence = BACKBONES.get(config.family).descriptor.confidence or "full"
    if run.shared.sampling.filtered:
        confidence = "filtered"
    banned = config.eos_ids if run.eos == "never" else ()
    last = ()
    if run.eos == "last":
        eot = tokenizer.convert_tokens_to_ids(END_OF_TURN) if END_OF_TURN in tokenizer.get_vocab() else None
        last = (*config.eos_ids, *([] if eot is None else [eot]))
    return Sampling(spec.temperature, spec.top_k, spec.top_p, confidence, banned, last)


def _fixed(answer, tokenizer) -> tuple[tuple[int, int], ...]:
    """A task's answer marker as (offset, token) pairs."""
    if not answer:
        return ()
    ids = tokenizer.encode(answer["text"], add_special_tokens=False)
    return tuple((answer["position"] + i, token) for i, token in enumerate(ids))


def _describe(run: ResolvedRun, nets: dict[str, Network]) -> dict[str, object]:
    size, grid = DTYPES[run.dtype].itemsize, nets["target"].config.grid
    return {
        **({"grid": grid} if grid != "origin" else {}),
        "model": run.preset.name,
        "parameters": {role: net.config.parameters for role, net in nets.items()},
        "reads": {role: _reads(net.config, run.block_length, size) for role, net in nets.items()},
        "block_length": nets["target"].block_length,
        "decoder": {"name": run.decoder.name, "version": run.decoder.version},
        "dtype": run.dtype,
        "device": torch.cuda.get_device_name(run.device) if run.device.startswith("cuda") else "cpu",
        "batch_size": run.batch_size,
        "store": nets["target"].store_mode,
    }


def _reads(config: BackboneConfig | PolicyConfig, tokens: int, size: int) -> dict[str, int]:
    """Bytes that a forward of so many tokens reads for a single row: the weights, output head included, and a key with
    its value. config: of a backbone or of a head; `size` of a number."""
    if not isinstance(config, BackboneConfig):
        return {"weights": config.parameters * size, "key": 0}
    numbers = config.parameters_read(tokens)
    if type(config) is not BackboneConfig:  # a head: its own parameters, and the backbone's output head
        numbers = config.parameters + config.vocab_size * config.hidden_size
    key = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return {"weights": round(numbers) * size, "key": key * size}
