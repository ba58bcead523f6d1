"""A model's descriptor as far as it is known here: from its files where they are here, else from its preset and family.

`described` gives every value with its source. What a user says comes as a `Descriptor` of flags: ``--attention``,
``--block-length``, ``--mask-id``, ``--shift``, ``--grid``, ``--bos`` and ``--end-ids``. Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dlmbench.backbone.configuration import describe
from dlmbench.backbone.descriptor import FLAGS, Descriptor, Settled, settle
from dlmbench.models.presets import Preset
from dlmbench.registry import BACKBONES


def with_flags(preset: Preset, flags: Descriptor) -> Preset:
    """The preset, used as the user says."""
    return replace(preset, flags=flags)


def described(preset: Preset) -> Settled:
    """The descriptor of a model and who says each of its values.

    Raises RequestError for files that no family reads.
    """
    folder, told = Path(preset.location).expanduser(), preset.told
    known = preset.family in BACKBONES
    if (known or preset.family is None) and (folder / "config.json").is_file():
        settled = describe(folder, told)
    else:
        family = BACKBONES.get(preset.family or "").descriptor if known else Descriptor()
        settled = settle(("flag", told.flags), ("preset", told.preset), (f"family {preset.family}", family))
    found = settled.descriptor
    if found.attention != "block_causal" or found.block_length or preset.block_length is None:
        return settled
    return Settled(replace(found, block_length=preset.block_length), {**settled.sources, "block_length": "preset"})


def asked_for(preset: Preset) -> dict[str, str]:
    """What nobody says and a run needs: field -> where it can come from."""
    elsewhere = not (Path(preset.location).expanduser() / "config.json").is_file()
    if elsewhere and preset.family not in BACKBONES:
        return {}  # its files will say
    settled = described(preset)
    unknown = settled.unknown
    if settled.descriptor.attention == "block_causal" and settled.descriptor.block_length is None:
        unknown = [*unknown, "block_length"]
    return {
        name: f"its files, else {FLAGS[name]}" if elsewhere and name == "mask_id" else FLAGS[name] for name in unknown
    }
