"""How does a model attend, and do a target and its helper belong together? Judged before any weight is loaded.

A draft proposes ids and a guide judges ids, so an id must be the same token to both. Files that are not on this machine
yet cannot be compared here; the decoder looks at the loaded configurations once more. Imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlmbench.backbone.descriptor import ask
from dlmbench.backbone.families import find
from dlmbench.errors import RequestError
from dlmbench.files import read_json
from dlmbench.models.descriptors import described
from dlmbench.models.presets import Preset, config_of, resolve
from dlmbench.registry import BACKBONES


def attention_of(model: str) -> str | None:
    """Attention type of a model, None when only its checkpoint can tell (a hub name)."""
    return attention_type(resolve(model))


def attention_type(preset: Preset) -> str | None:
    """The same of a preset: the word that a decoder declares."""
    flags, usual, _ = preset.told
    if attention := flags.attention or usual.attention:
        return attention
    family = family_of(preset)
    return BACKBONES.get(family).descriptor.attention if family in BACKBONES else None


def family_of(preset: Preset) -> str | None:
    """Its family, from the checkpoint's config.json where the preset does not say; None when neither is here."""
    if preset.family:
        return preset.family
    folder = Path(preset.location).expanduser()
    config = read_json(folder / "config.json")
    if config is None and folder.is_dir():
        raise RequestError(f"Model folder {str(folder)!r} has no config.json; give the folder of a checkpoint.")
    return find(config, preset.name, preset.told).name if config else None


def check_described(preset: Preset, block_length: int | None = None) -> None:
    """Refuse a model of which too little is known to decode with it, before anything is fetched.

    `block_length` is what the run asks for. Raises RequestError with the flags that say what is missing.
    """
    settled = described(preset)
    found, family = settled.descriptor, family_of(preset)
    unknown = [name for name in settled.unknown if name != "mask_id" or config_of(preset)]
    if family in BACKBONES and unknown:
        raise ask(preset.name, family, unknown)
    if found.attention == "block_causal" and not (block_length or preset.block_length or found.block_length):
        raise RequestError(
            f"{preset.name} attends by blocks, and nothing says how long those that it was trained with are: give "
            "--block-length."
        )


def check_helper(role: str, target: Preset, helper: Preset) -> None:
    """A draft attends like its target, a guide reads left to right, and both share the target's tokens."""
    if role == "head":  # judged with its tensors; it may lack a config.json
        return
    ours, theirs = (attention_type(preset) for preset in (target, helper))
    wanted = {"draft": ours, "reference": ours, "guide": "causal"}.get(role)
    if wanted and theirs and theirs != wanted:
        raise RequestError(
            f"The {role} {helper.name} has {theirs} attention and {wanted} is needed: give another --{role}."
        )
    check_companion(role, target, helper)


def check_companion(role: str, target: Preset, helper: Preset) -> None:
    """Refuse a draft or guide with another vocabulary, mask id or tokenizer. Raises RequestError."""
    if role not in ("draft", "guide"):
        return
    remedy = f"Give a --{role} made for {target.name}'s tokenizer."
    ours, theirs = _config(target), _config(helper)
    same_ids = _same_tokenizer(target, helper)
    if ours and theirs:
        for name, what in (("vocab_size", "vocabulary size"), ("mask_token_id", "mask id")):
            a, b = ours.get(name), theirs.get(name)
            # an autoregressive guide has no mask id, and large checkpoints pad one vocabulary to different sizes
            excused = role == "guide" and (name == "mask_token_id" or same_ids)
            if a != b and None not in (a, b) and not excused:
                raise RequestError(
                    f"The {role} {helper.name} has the {what} {b} and {target.name} has {a}, so its ids mean other "
                    f"tokens. {remedy}"
                )
    if same_ids is False:
        raise RequestError(
            f"The {role} {helper.name} has another tokenizer than {target.name}, so its ids mean other tokens. {remedy}"
        )


def _config(preset: Preset) -> dict[str, Any] | None:
    return read_json(Path(preset.location).expanduser() / "config.json")


def _same_tokenizer(one: Preset, other: Preset) -> bool | None:
    """Do both spell the same tokens with the same ids? None when a vocabulary is not here; added tokens aside."""
    if one.tokenizer_location == other.tokenizer_location:
        return True
    ours, theirs = (_vocabulary(Path(preset.tokenizer_location).expanduser()) for preset in (one, other))
    return None if None in (ours, theirs) else ours == theirs


def _vocabulary(folder: Path) -> Any:
    """Token -> id (or a list of tokens), of tokenizer.json or, for tokenizers without one, of vocab.json."""
    if (whole := read_json(folder / "tokenizer.json")) is not None:
        return (whole.get("model") or {}).get("vocab")
    return read_json(folder / "vocab.json")
