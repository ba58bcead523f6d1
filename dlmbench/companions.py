"""Do a target and its helper belong together? Judged from their configuration files, before any weight is loaded.

A draft proposes ids and a guide judges ids, so an id must be the same token to both. Files that are not on this machine
yet cannot be compared here; the decoder looks at the loaded configurations once more. Imports nothing heavy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dlmbench.errors import RequestError
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
    file = Path(preset.location).expanduser() / "config.json"
    return json.loads(file.read_text()) if file.is_file() else None


def _same_tokenizer(one: Preset, other: Preset) -> bool | None:
    """Do both spell the same tokens with the same ids? None when a tokenizer file is not here; added tokens aside."""
    if one.tokenizer_location == other.tokenizer_location:
        return True
    files = [Path(preset.tokenizer_location).expanduser() / "tokenizer.json" for preset in (one, other)]
    if not all(file.is_file() for file in files):
        return None
    texts = [file.read_bytes() for file in files]
    if texts[0] == texts[1]:
        return True
    return json.loads(texts[0])["model"].get("vocab") == json.loads(texts[1])["model"].get("vocab")
