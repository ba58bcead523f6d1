"""From a run's spec to a ready engine: load every network once, give each its role."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import torch

from dlmbench.backbone import load_checkpoint, load_tokenizer, weights_hash
from dlmbench.backbone.bidirectional import Bidirectional, CachePolicy
from dlmbench.backbone.loading import checkpoint_folder, read_config
from dlmbench.backbone.network import Network
from dlmbench.decoders.predict import Sampling
from dlmbench.engine.loop import Engine
from dlmbench.errors import RequestError
from dlmbench.presets import resolve
from dlmbench.registry import BACKBONES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
END_OF_TURN = "<|eot_id|>"  # LLaDA's; the switch for EOS covers both
END_TOKENS = (  # what ends a document or a turn, and what a model pads its answer with, in the families' own words
    "<|endoftext|>", "<|im_end|>",  # Qwen, SDAR, Dream; the first also LLaDA's
    END_OF_TURN, "<|end_of_text|>",  # LLaDA, Llama 3
    "<|dlm_pad|>",  # DiffuCoder
)  # fmt: skip


@lru_cache(maxsize=4)
def _model(location: str, revision: str | None, device: str, dtype: str):
    return load_checkpoint(location, device, DTYPES[dtype], revision)


@lru_cache(maxsize=8)
def _tokenizer(location: str, revision: str | None) -> Any:
    return load_tokenizer(location, revision)


@lru_cache(maxsize=16)
def _hash(location: str, revision: str | None) -> str:
    return weights_hash(checkpoint_folder(location, revision))


def network_hashes(checked) -> dict[str, str]:
    """role -> hash of its weights, without loading them into memory. `checked` is what `RunSpec.check` returns."""
    names = {"target": checked.spec.model, **checked.companions}
    presets = {role: resolve(name) for role, name in names.items()}
    return {role: _hash(preset.location, preset.revision) for role, preset in presets.items()}


def tokenizer_of(model: str) -> Any:
    """The tokenizer that belongs to a model name. It begins raw prompts with BOS where the family was evaluated so."""
    preset = resolve(model)
    tokenizer = _tokenizer(preset.tokenizer_location, preset.revision)
    if preset.family:
        family = BACKBONES.get(preset.family)
    else:
        _, family = read_config(checkpoint_folder(preset.location, preset.revision))
    if family.bos_on_raw_prompts:
        tokenizer.add_bos_token = True
    return tokenizer


def end_ids(config, tokenizer) -> tuple[int, ...]:
    """Tokens that end a row: the configuration's own first, the tokenizer's EOS, and its special tokens that say so."""
    special = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = (special.get(word) for word in (tokenizer.eos_token, *END_TOKENS))
    ids = dict.fromkeys([*config.eos_ids, *(id for id in found if id is not None)])
    return tuple(id for id in ids if id < config.vocab_size and id != config.mask_id)


def build(spec, *, lag: int | None = None) -> Engine:
    """An engine for one cell. `spec` is a `RunSpec`; models and tokenizers are loaded once a process.

    Raises RequestError for whatever the spec's own check refuses, and for checkpoints that cannot be read.
    """
    checked = spec.check()
    spec = spec.resolved()
    tokenizer = tokenizer_of(spec.model)  # before any weight: it may be missing
    _check_attention(checked)
    nets = {}
    for role, name in {"target": spec.model, **checked.companions}.items():
        preset = resolve(name)
        if role == "head":
            folder = checkpoint_folder(preset.location, preset.revision)
            nets[role] = checked.decoder.head_network(nets["target"], folder, network_hashes(checked)["target"])
            continue
        model = _model(preset.location, preset.revision, spec.device, spec.dtype)
        nets[role] = _network(role, model, checked)
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


def _check_attention(checked) -> None:
    """A hub name tells its family only when its configuration is there: look again, before the weights are read."""
    preset = resolve(checked.spec.model)
    config, _ = read_config(checkpoint_folder(preset.location, preset.revision))
    if config.attention not in checked.decoder.attention:
        raise RequestError(
            f"Method {checked.decoder.name} works with {' or '.join(checked.decoder.attention)} attention and "
            f"{checked.spec.model} has {config.attention}: choose another --model or --method."
        )
    if checked.spec.cache != "none" and config.attention != "full":
        raise RequestError(
            f"Cache policy {checked.spec.cache} approximates full attention, and {checked.spec.model} has "
            f"{config.attention} attention, whose cache is exact already: leave --cache out."
        )


def _network(role: str, model, checked) -> Network:
    """Full attention gets the run's cache policy and guidance; guides and drafts run without."""
    if model.config.attention != "full":
        return Network(role, model, 1 if model.config.shift else checked.block_length, checked.spec.store)
    if role != "target":
        return Bidirectional(role, model, checked.block_length)
    policy = CachePolicy(checked.spec.cache, **asdict(checked.axes.cache))
    return Bidirectional(role, model, checked.block_length, policy, checked.axes.sampling.guidance)


def _sampling(checked, config, tokenizer) -> Sampling:
    """What is drawn and scored. LLaDA scores without temperature, Dream after its filters (cards, sections 4 and 5)."""
    spec = checked.spec
    confidence = "clean" if config.family == "llada" else "full"
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
        "model": resolve(spec.model).name,
        "weights": network_hashes(checked),
        "parameters": {role: net.config.parameters for role, net in nets.items()},
        "block_length": nets["target"].block_length,
        "decoder": {"name": checked.decoder.name, "version": checked.decoder.version},
        "dtype": spec.dtype,
        "device": torch.cuda.get_device_name(spec.device) if spec.device.startswith("cuda") else "cpu",
        "batch_size": spec.batch_size,
        "store": spec.store,
    }
