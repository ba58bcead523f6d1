"""The runtime under every decoder. Import what you need from here.

What needs torch is imported when it is first used: configurations, descriptors and families are read without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dlmbench.backbone.config import BackboneConfig

if TYPE_CHECKING:
    from dlmbench.backbone.loading import load_checkpoint, load_tokenizer, save_checkpoint, weights_hash
    from dlmbench.backbone.model import Transformer

__all__ = ["BackboneConfig", "Transformer", "load_checkpoint", "load_tokenizer", "save_checkpoint", "weights_hash"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "model" if name == "Transformer" else "loading"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
