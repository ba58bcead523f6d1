"""From a checkpoint's folder to the configuration of its network: what its files say, and what is told of it.

No weight is read and no tokenizer is built. Imports nothing heavy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.descriptor import NOTHING, Descriptor, Settled, Told, ask, settle
from dlmbench.backbone.families import Family, Fields, find
from dlmbench.errors import RequestError
from dlmbench.files import JsonObject, broken, model_name, read_json


def read_config(folder: Path, told: Told = NOTHING) -> tuple[BackboneConfig, Family]:
    """Configuration and family of a checkpoint folder; no weight and no tokenizer is loaded.

    End tokens are those of config.json and of generation_config.json together. Raises RequestError for a layout that no
    family reads, for fields that are missing or ask for something that is not built, and where nobody says how the
    model is used: `told` is what a preset and flags say.
    """
    raw, family = _raw_config(folder, told)
    if method := raw.get("quantization_config") or raw.get("compression_config"):
        method = method.get("quant_method", "an unnamed method") if isinstance(method, dict) else method
        raise RequestError(
            f"{model_name(folder)} is quantised with {method} (quantization_config in config.json), which is not "
            "supported: take the checkpoint that it was made from, in bfloat16, float16 or float32."
        )
    with _fields_of(folder / "config.json"):
        config = family.layout.read(raw)
    settled = _settle(raw, family, folder, told, config.vocab_size)
    _check_settled(settled, config.vocab_size, folder)
    found = settled.descriptor
    assert found.attention is not None and found.shift is not None
    return replace(
        config, family=family.name, attention=found.attention, shift=found.shift, mask_id=found.mask_id,
        eos_ids=found.end_ids or (), block_length=found.block_length, grid=found.grid or "origin",
    ), family  # fmt: skip


def describe(folder: Path, told: Told = NOTHING) -> Settled:
    """A checkpoint's descriptor, with the source of every value that is known; what is not known is left None.

    Raises RequestError for a layout that no family reads.
    """
    raw, family = _raw_config(folder, told)
    vocabulary = raw.get("embedding_size") or raw.get("vocab_size")
    return _settle(raw, family, folder, told, vocabulary if isinstance(vocabulary, int) else sys.maxsize)


def _raw_config(folder: Path, told: Told) -> tuple[JsonObject, Family]:
    name = model_name(folder)
    raw = read_json(folder / "config.json")
    if raw is None:
        raise RequestError(f"Model folder {name!r} has no config.json; give the folder of a checkpoint.")
    return raw, find(raw, name, told)


def _settle(raw: JsonObject, family: Family, folder: Path, told: Told, vocabulary: int) -> Settled:
    """All sources in their order; a preset's or family's mask id is used where the vocabulary has it."""
    with _fields_of(folder / "config.json"):
        fields = Fields(raw)
        mask, ends = fields.get("mask_token_id"), fields.ids("eos_token_id")
        block = fields.count(family.block_field) if fields.get(family.block_field) is not None else None
    with _fields_of(folder / "generation_config.json"):
        more = Fields(read_json(folder / "generation_config.json") or {}).ids("eos_token_id")
    if mask is not None and not (type(mask) is int and 0 <= mask < vocabulary):
        raise RequestError(
            f"{model_name(folder)}: config.json leads to the mask id {mask!r}, which is no token of a vocabulary of "
            f"{vocabulary}: correct mask_token_id there."
        )
    preset, usual = (
        replace(one, mask_id=None) if one.mask_id is not None and one.mask_id >= vocabulary else one
        for one in (told.preset, family.descriptor)
    )
    ends = tuple(dict.fromkeys((*more, *ends)))
    silent = mask is None and told.flags.mask_id is None
    asked = silent and (told.by_user or usual.attention != "causal")
    named = tokenizer_mask_id(folder, family.mask_word) if asked else None
    return settle(
        ("flag", told.flags),
        ("config.json", Descriptor(mask_id=mask, block_length=block)),
        ("config.json and generation_config.json" if more else "config.json", Descriptor(end_ids=ends)),
        ("tokenizer", Descriptor(mask_id=named)),
        ("preset", preset),
        (f"family {family.name}", usual),
    )


def _check_settled(settled: Settled, vocabulary: int, folder: Path) -> None:
    """Refuse what nobody says, and a mask that is no token."""
    found, name = settled.descriptor, model_name(folder)
    if settled.unknown:
        raise ask(name, settled.unknown)
    if found.mask_id is not None and found.mask_id >= vocabulary:
        raise RequestError(
            f"{name}: the {settled.sources['mask_id']} says mask id {found.mask_id}, which is no token of a vocabulary "
            f"of {vocabulary}: give --mask-id."
        )


@contextmanager
def _fields_of(file: Path) -> Iterator[None]:
    """Errors about the fields of a file name the model and the file."""
    try:
        yield
    except RequestError as error:
        raise broken(file, str(error)) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise broken(file, f"has a field of another kind than it should be ({error}): fetch it again") from error


def tokenizer_mask_id(folder: Path, word: str | None = None) -> int | None:
    """The mask token's id by the tokenizer's files, without building it; None when they do not say. `word` is how the
    family spells it, for files that have the token and do not say that it is the mask."""
    settings = read_json(folder / "tokenizer_config.json") or {}
    token = settings.get("mask_token") or (read_json(folder / "special_tokens_map.json") or {}).get("mask_token")
    text = (token.get("content") if isinstance(token, dict) else token) or word
    if not text:
        return None
    with _fields_of(folder / "tokenizer_config.json"):
        decoder = settings.get("added_tokens_decoder") or {}
        added = {one.get("content"): int(number) for number, one in decoder.items()}
    added |= read_json(folder / "added_tokens.json") or {}
    if text not in added:
        listed = (read_json(folder / "tokenizer.json") or {}).get("added_tokens") or []
        added |= {one.get("content"): one.get("id") for one in listed}
    return added.get(text)
