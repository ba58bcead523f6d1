"""The engine: requests in, generations and counts out."""

from dlmbench.engine.loop import Engine, Generation, Request

__all__ = ["Engine", "Generation", "Request"]
