"""Do a target and its helper belong together? Judged from their configuration files, before any weight is loaded.

A draft proposes ids and a guide judges ids, so an id must be the same token to both. Files that are not on this machine
yet cannot be compared here; the decoder looks at the loaded configurations once more. Imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlmbench.errors import RequestError
from dlmbench.files import read_json
from dlmbench.presets import Preset


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
