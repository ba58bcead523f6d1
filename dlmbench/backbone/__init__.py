"""The runtime under every decoder. Import what you need from here; torch is imported with it."""

from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.loading import load_checkpoint, load_tokenizer, save_checkpoint, weights_hash
from dlmbench.backbone.model import Transformer

__all__ = ["BackboneConfig", "Transformer", "load_checkpoint", "load_tokenizer", "save_checkpoint", "weights_hash"]
