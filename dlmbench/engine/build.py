"""From a run's spec to a ready engine: load every network once, give each its role."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from dlmbench.backbone import load_checkpoint, load_tokenizer, weights_hash
from dlmbench.backbone.loading import checkpoint_folder
from dlmbench.backbone.network import Network
from dlmbench.decoders.predict import Sampling
from dlmbench.engine.loop import Engine
from dlmbench.presets import resolve

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    """The tokenizer that belongs to a model name."""
    preset = resolve(model)
    return _tokenizer(preset.tokenizer_location, preset.revision)


def build(spec, *, lag: int | None = None) -> Engine:
    """An engine for one cell. `spec` is a `RunSpec`; models and tokenizers are loaded once a process.

    Raises RequestError for whatever the spec's own check refuses, and for checkpoints that cannot be read.
    """
    checked = spec.check()
    spec = spec.resolved()
    nets = {}
    for role, name in {"target": spec.model, **checked.companions}.items():
        preset = resolve(name)
        if role == "head":
            folder = checkpoint_folder(preset.location, preset.revision)
            nets[role] = checked.decoder.head_network(nets["target"], folder, network_hashes(checked)["target"])
            continue
        model = _model(preset.location, preset.revision, spec.device, spec.dtype)
        block = 1 if model.config.shift else checked.block_length
        nets[role] = Network(role, model, block, spec.store)
    return Engine(
        nets,
        checked.decoder(checked.config),
        tokenizer_of(spec.model),
        batch_size=spec.batch_size,
        sampling=Sampling(spec.temperature, spec.top_k, spec.top_p),
        lag=lag,
        description=_describe(checked, spec, nets),
    )


def _describe(checked, spec, nets: dict[str, Network]) -> dict[str, Any]:
    return {
        "model": resolve(spec.model).name,
        "weights": network_hashes(checked),
        "parameters": {role: net.config.parameters for role, net in nets.items()},
        "block_length": nets["target"].block_length,
        "decoder": {"name": checked.decoder.name, "version": checked.decoder.version},
        "dtype": spec.dtype,
        "device": torch.cuda.get_device_name(spec.device) if spec.device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads() if spec.device == "cpu" else None,
        "batch_size": spec.batch_size,
        "store": spec.store,
    }
