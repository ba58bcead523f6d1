"""dlmbench: benchmark the decoding strategies of diffusion language models on one runtime.

From Python::

    import dlmbench
    model = dlmbench.load("nano2", method="threshold", threshold=0.8)
    question = "Tom has 12 apples. Tom buys 3 bags of 8 apples. Tom loses 7 apples. How many apples does Tom have?"
    print(dlmbench.decode(model, [question + "<|sep|>"])[0].text)
    folder = dlmbench.run(dlmbench.RunSpec(method="threshold", task="nano-gsm", limit=20))
    table = dlmbench.read_results(folder)

Nothing heavy is imported before the first of these is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["RunSpec", "SweepSpec", "decode", "load", "read_results", "run"]

if TYPE_CHECKING:
    from dlmbench.api import decode, load, read_results, run
    from dlmbench.request import RunSpec, SweepSpec


def __getattr__(name: str) -> object:
    if name in ("RunSpec", "SweepSpec"):
        from dlmbench import request

        return getattr(request, name)
    if name in __all__:
        from dlmbench import api

        return getattr(api, name)
    raise AttributeError(f"module 'dlmbench' has no attribute {name!r}")
