"""The oracle as a backbone family: a configuration without layers, read from a file like any other.

What takes the place of a hash of weights is that of its ``config.json``, whose ``rule`` counts the changes of what an
oracle answers. Imports nothing heavy.
"""

from __future__ import annotations

from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.descriptor import Descriptor
from dlmbench.backbone.families import Family, Layout
from dlmbench.errors import RequestError
from dlmbench.files import JsonObject

RULE = 1


def oracle_config(
    vocab_size: int, mask_id: int | None, eos_ids: tuple[int, ...] = (), attention: str = "full"
) -> BackboneConfig:
    """A network without layers: no parameters, no FLOPs. `attention` is "full" or "block_causal"."""
    return BackboneConfig(
        family="oracle", attention=attention, vocab_size=vocab_size, hidden_size=0, num_layers=0, num_heads=0,
        num_kv_heads=0, head_dim=0, intermediate_size=0, mask_id=mask_id, eos_ids=eos_ids,
    )  # fmt: skip


def _read(raw: JsonObject) -> BackboneConfig:
    if raw.get("rule") != RULE:
        raise RequestError(f"it asks for rule {raw.get('rule')!r} of the oracle, which has rule {RULE} only")
    return oracle_config(raw["vocab_size"], raw.get("mask_token_id"))


ORACLE = Family("oracle", ("oracle",), ("Oracle",), Layout(_read, {}), Descriptor(attention="full", shift=0))
