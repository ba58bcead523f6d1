"""A model's descriptor as far as it is known here: from its files where they are here, else from its preset and family.

`described` gives every value with its source. What a user says comes as a `Descriptor` of flags: ``--attention``,
``--block-length``, ``--mask-id``, ``--shift``, ``--grid``, ``--bos`` and ``--end-ids``. Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dlmbench.backbone.configuration import describe
from dlmbench.backbone.descriptor import Descriptor, Settled, settle
from dlmbench.models.presets import Preset
from dlmbench.registry import BACKBONES


def with_flags(preset: Preset, flags: Descriptor) -> Preset:
    """The preset, used as the user says."""
    return replace(preset, flags=flags)


def described(preset: Preset) -> Settled:
    """The descriptor of a model and who says each of its values.

    Raises RequestError for files that no family reads.
    """
    folder = Path(preset.location).expanduser()
    if preset.family in (None, *BACKBONES.names()) and (folder / "config.json").is_file():
        return describe(folder, preset.told)
    family = BACKBONES.get(preset.family).descriptor if preset.family in BACKBONES else Descriptor()
    told = preset.told
    block = Descriptor(block_length=preset.block_length if not preset.blocks else None)
    usual = (("preset", told.preset), ("preset", block)) if family.attention != "causal" else (("preset", told.preset),)
    return settle(("flag", told.flags), *usual, (f"family {preset.family}", family))
