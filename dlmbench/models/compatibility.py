"""How does a model attend, and do a target and its helper belong together? Judged before any weight is loaded.

A draft proposes ids and a guide judges ids, so an id must be the same token to both. Files that are not on this machine
yet cannot be compared here; the decoder looks at the loaded configurations once more. Imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.descriptor import FLAGS, Descriptor, ask
from dlmbench.backbone.families import find
from dlmbench.errors import RequestError
from dlmbench.files import JsonObject, read_json
from dlmbench.models.descriptors import asked_for, described
from dlmbench.models.presets import Preset
from dlmbench.registry import BACKBONES

if TYPE_CHECKING:
    from dlmbench.decoders.base import Decoder


def attention_type(preset: Preset) -> str | None:
    """A model's attention, in the word that a decoder declares; None when only its checkpoint can tell (a hub name)."""
    flags, usual, _ = preset.told
    if attention := flags.attention or usual.attention:
        return attention
    family = family_of(preset)
    return BACKBONES.get(family or "").descriptor.attention if family in BACKBONES else None


def fills_masks(preset: Preset) -> bool:
    """Can the usual methods, which predict every position of a block, decode with it?"""
    found = described(preset).descriptor
    return found.attention != "causal" and not (found.attention == "block_causal" and found.shift)


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

    `block_length` is what the run asks for. A mask id that only the checkpoint's files can say is left to its loading
    where they are not here. Raises RequestError with the flags that say what is missing.
    """
    found = described(preset).descriptor
    if found.grid not in (None, "origin") and found.attention != "block_causal":
        raise RequestError(
            f"--grid {found.grid} says where block-causal blocks lie and {preset.name} has {found.attention} "
            "attention: leave it out."
        )
    asked = {name: place for name, place in asked_for(preset).items() if place in FLAGS.values()}
    if block_length or preset.block_length:
        asked.pop("block_length", None)
    if asked:
        raise ask(preset.name, list(asked))


def check_blocks(preset: Preset, rules: Descriptor | BackboneConfig, decoder: type[Decoder]) -> None:
    """Refuse a method that does not know where the model's block-causal blocks lie, or how its head predicts.

    `rules` is what is known of the model, `decoder` the method's class. Raises RequestError.
    """
    if rules.attention != "block_causal":
        return
    if rules.shift and not decoder.anchored:
        raise RequestError(
            f"Method {decoder.name} predicts all positions of a block, and the head of {preset.name} predicts the next "
            "position, so that a block must begin with a known token: use --method fastdllm2."
        )
    if decoder.anchored and rules.shift == 0:
        raise RequestError(
            f"Method {decoder.name} begins every block with the token that the block before predicts, and the head of "
            f"{preset.name} predicts its own position: use --method threshold."
        )
    if (grid := rules.grid or "origin") not in decoder.grids:
        raise RequestError(
            f"Method {decoder.name} counts blocks from position 0, and those of {preset.name} lie on the grid {grid}: "
            "give --grid origin, or use --method static or threshold."
        )


def store_of(preset: Preset, rules: Descriptor, asked: str | None) -> str:
    """Who writes a finished block's keys and values: what is asked for, else the forward that begins the next block.

    Raises RequestError where that forward needs a token which only the storing one yields.
    """
    if rules.attention != "block_causal" or not rules.shift:
        return asked or "fused"
    if asked == "fused":
        raise RequestError(
            f"--store fused lets the first forward of a block store the one before, and the head of {preset.name} "
            "predicts the next position: the forward that stores a block yields the next block's first token. Leave "
            "it out."
        )
    return "separate"


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


def _config(preset: Preset) -> JsonObject | None:
    return read_json(Path(preset.location).expanduser() / "config.json")


def _same_tokenizer(one: Preset, other: Preset) -> bool | None:
    """Do both spell the same tokens with the same ids? None when a vocabulary is not here; added tokens aside."""
    if one.tokenizer_location == other.tokenizer_location:
        return True
    ours, theirs = (_vocabulary(Path(preset.tokenizer_location).expanduser()) for preset in (one, other))
    return None if None in (ours, theirs) else ours == theirs


def _vocabulary(folder: Path) -> JsonObject | list | None:
    """Token -> id (or a list of tokens), of tokenizer.json or, for tokenizers without one, of vocab.json."""
    if (whole := read_json(folder / "tokenizer.json")) is not None:
        return (whole.get("model") or {}).get("vocab")
    return read_json(folder / "vocab.json")
