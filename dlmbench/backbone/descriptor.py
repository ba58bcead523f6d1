"""What a diffusion model is used with and its tensors do not say: how it attends, where it predicts, what its mask is.

Llama's, Qwen2's and Qwen3's layouts hold autoregressive and diffusion models alike, so the layout (`Family.layout`) and
the descriptor are told apart. A field comes, in this order, from a flag, from the checkpoint's files, from the preset,
from the family; one that nobody knows is asked for and never guessed. Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

from dlmbench.errors import RequestError
from dlmbench.files import JsonObject

ATTENTIONS = ("block_causal", "full", "causal")
GRIDS = ("origin", "cut", "prompt", "split")
FLAGS = {  # field -> the flag that gives it
    "attention": "--attention",
    "block_length": "--block-length",
    "mask_id": "--mask-id",
    "shift": "--shift",
    "grid": "--grid",
    "bos_on_raw_prompts": "--bos",
    "end_ids": "--end-ids",
}


@dataclass(frozen=True)
class Descriptor:
    """The fields, None where this source says nothing.

    `attention`: which keys a query sees: those of its own block and earlier ones (block_causal), all (full), none to
    its right (causal, autoregressive). `block_length`: what block_causal weights were trained with. `mask_id`: the
    token that stands for "not known yet". `shift`: 1 when the head at position i predicts token i + 1, else 0.
    `end_ids`: tokens that end a row. `bos_on_raw_prompts`: prompts without chat markup begin with BOS, which the
    tokenizer does not add by itself. `tokenizer`: class in transformers for files whose own class it does not know.
    `confidence`: what a drawn token is scored by (`Sampling.confidence`).

    `grid` says where block_causal blocks lie. ``origin``: cut at multiples of the block length from position 0, the
    prompt's tail standing in the first active block and the answer filling its last one (SDAR). ``cut``: the same, but
    the answer ends with its budget, inside a block that ends there (kohra, on bd3lm). ``prompt``: counted from the
    prompt's end, so that the prompt's *first* block is the short one and the answer's last may be (dllm's bd3lm since
    January 2026). ``split``: cut from position 0, but the prompt's tail keeps the keys and values it has without the
    answer until its block is complete, and the answer has as many blocks as its budget alone fills (dllm's before).

    Raises RequestError for values that no field can have.
    """

    attention: str | None = None
    block_length: int | None = None
    mask_id: int | None = None
    shift: int | None = None
    grid: str | None = None
    bos_on_raw_prompts: bool | None = None
    end_ids: tuple[int, ...] | None = None
    tokenizer: str | None = None
    confidence: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("attention", ATTENTIONS), ("grid", GRIDS), ("shift", (0, 1))):
            value = getattr(self, name)
            if value is not None and value not in choices:
                known = ", ".join(map(str, choices[:-1])) + f" or {choices[-1]}"
                raise RequestError(f"{FLAGS[name]} is {value!r}; it takes {known}.")
        if self.block_length is not None and self.block_length < 1:
            raise RequestError(f"--block-length is {self.block_length}; a block has at least one position.")
        if self.mask_id is not None and self.mask_id < 0:
            raise RequestError(f"--mask-id is {self.mask_id}; it takes the number of a token.")
        if self.attention == "causal" and self.shift == 0:
            raise RequestError("--attention causal reads the next token at each position: leave --shift 0 out.")

    def said(self) -> dict[str, object]:
        """The fields that are said."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


class Told(NamedTuple):
    """What is told of a checkpoint from outside its folder: by flags, which come first, and by a preset, which files
    that say otherwise overrule."""

    flags: Descriptor = Descriptor()
    preset: Descriptor = Descriptor()
    family: str | None = None  # by the preset, for files that name a parent's class

    @property
    def by_user(self) -> bool:
        """Does the user say how the checkpoint is used, so that the names in config.json need not?"""
        return self.flags.attention is not None


NOTHING = Told()


class Settled(NamedTuple):
    """A descriptor and, for each field that is known, who says so."""

    descriptor: Descriptor
    sources: dict[str, str]

    @property
    def unknown(self) -> list[str]:
        """Fields that a network cannot be run without and nobody gave."""
        needed = ["attention", "shift"]
        if self.descriptor.attention != "causal":
            needed.append("mask_id")
        return [name for name in needed if getattr(self.descriptor, name) is None]


def settle(*said: tuple[str, Descriptor]) -> Settled:
    """Descriptors by their sources, the first one to name a field being right.

    Shift, block length and grid belong to an attention: a source whose attention is not the one that is used does not
    give them.
    """
    attention = next((one.attention for _, one in said if one.attention), None)
    values: JsonObject = {}
    sources: dict[str, str] = {}
    for source, one in said:
        strange = one.attention not in (None, attention)
        for name, value in one.said().items():
            if name in values or (strange and name in ("shift", "block_length", "grid")):
                continue
            values[name], sources[name] = value, source
    if values.get("attention") == "causal":
        values.setdefault("shift", 1)
    return Settled(Descriptor(**values), sources)


def ask(name: str, unknown: list[str]) -> RequestError:
    """The refusal of a checkpoint that nobody describes."""
    words = {
        "attention": "how it attends",
        "mask_id": "what its mask token is (config.json has no mask_token_id and the tokenizer names no mask token)",
        "shift": "whether its head predicts the next position",
        "block_length": "how long the blocks are that it was trained with",
    }
    missing = [words[field] for field in unknown]
    flags = [FLAGS[field] for field in unknown]
    return RequestError(f"{name}: nothing says {' and '.join(missing)}: give {' and '.join(flags)}.")
