"""Options of a run that belong to no method: ``--set cache.*``, ``sampling.*`` and ``oracle.*``. Imports nothing heavy.

They reach every method of a run, its baselines included, so that rows stay comparable.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from dlmbench.oracle.options import OracleOptions
from dlmbench.request import options

if TYPE_CHECKING:
    from dlmbench.files import Json
    from dlmbench.request.values import Settings

T = TypeVar("T")

OWNERS = ("cache", "sampling", "oracle")

POLICIES = {  # name -> (what a forward recomputes, what is approximated by that)
    "none": ("the whole row", "nothing"),
    "prefix": (
        "the whole row at a block's first step, then the block and everything right of it",
        "prompt and earlier blocks do not see what was revealed since the block began",
    ),
    "dual": (
        "the whole row at a block's first step, then the block alone",
        "prompt, earlier blocks and the masks to the right stay as they were when the block began",
    ),
    "freecache": (
        "the whole row once, then the block and everything right of it",
        "the prompt is as it was with an empty answer, each block as its last step left it, without that step's tokens",
    ),
    "prompt": ("the whole row once, then the answer", "the prompt is as it was with an empty answer"),
    "dkv": (
        "the whole row at a block's first two steps and at every 8th, then what was a mask before the last step",
        "prompt and tokens do not see what was revealed since the step after their own",
    ),
}


def _option(default: T, help: str, choices: tuple[str, ...] = ()) -> T:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class CacheOptions:
    """How a cache policy (``--cache``) of full-attention models does its work."""

    refresh_every: int = _option(0, "prefix, dual: recompute whole rows every n-th step of a block; 0: at its first")
    freeze: str = _option(
        "stale", "freecache: a block as its last step left it, or recomputed once more", ("stale", "refresh")
    )
    window: str = _option(
        "shrinking", "freecache: freeze what lies left of the block, or the prompt alone", ("shrinking", "prompt_only")
    )
    reload_every: int = _option(
        8, "dkv: recompute whole rows every n-th step of a block, beside its first two; 1: always; 0: these two alone"
    )

    def __post_init__(self):
        if self.refresh_every < 0 or self.reload_every < 0:
            raise ValueError("refresh_every and reload_every must be at least 0")


@dataclass(frozen=True)
class SamplingOptions:
    """Choices of full-attention models that go beyond temperature, top_k and top_p."""

    guidance: float = _option(0.0, "scale of classifier-free guidance; a call then counts two row-forwards")
    eos: str = _option(
        "model", "EOS: free, never proposed, or last (its positions and EoT's come last); model: as its preset says",
        ("model", "free", "never", "last"),
    )  # fmt: skip
    filtered: bool = _option(False, "scores from the distribution after top_p and top_k, also at temperature 0 (Dream)")
    fill_after_eos: bool = _option(False, "whatever lies right of the first EOS becomes EOS, and full rows end early")
    constraint: bool = _option(False, "write the task's answer marker at its fixed place before decoding begins")

    def __post_init__(self):
        if self.guidance < 0:
            raise ValueError("guidance must be at least 0")


@dataclass(frozen=True)
class SharedOptions:
    """All of them, bound."""

    cache: CacheOptions
    sampling: SamplingOptions
    oracle: OracleOptions

    @classmethod
    def bind(cls, settings: Settings, preset: Settings) -> SharedOptions:
        """From ``--set`` values on top of a preset's. Raises RequestError for unknown options and wrong values."""
        cache, sampling, oracle = ({**preset.get(owner, {}), **settings.get(owner, {})} for owner in OWNERS)
        return cls(
            options.bind(CacheOptions, cache, "cache"),
            options.bind(SamplingOptions, sampling, "sampling"),
            options.bind(OracleOptions, oracle, "oracle"),
        )

    def chosen(self) -> dict[str, Json]:
        """Every option that differs from its default, as ``owner.name``."""
        return {
            f"{owner}.{f.name}": getattr(group, f.name)
            for owner, group in ((owner, getattr(self, owner)) for owner in OWNERS)
            for f in dataclasses.fields(group)
            if getattr(group, f.name) != f.default
        }
