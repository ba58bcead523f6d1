"""The engine: requests in, generations and counts out."""

from dlmbench.engine.build import build, network_hashes, tokenizer_of
from dlmbench.engine.engine import Engine
from dlmbench.engine.request import Generation, Request

__all__ = ["Engine", "Generation", "Request", "build", "network_hashes", "tokenizer_of"]
