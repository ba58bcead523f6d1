"""`dlmbench doctor MODEL`: what is known of a model before its weights are read, from configuration and index alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dlmbench.errors import RequestError
from dlmbench.models.compatibility import family_of
from dlmbench.models.descriptors import asked_for, described
from dlmbench.models.presets import PRESETS, resolve
from dlmbench.runs.preflight import config_folder, config_of_checkpoint, weights_need

if TYPE_CHECKING:
    from dlmbench.backbone.config import BackboneConfig
    from dlmbench.models.presets import Preset

TOKENS = 2048  # of a row whose memory is stated: prompt and answer
BATCHES = (1, 16, 64)
TASKS = ("gsm8k", "math500", "humaneval", "mbpp")


class Remark(NamedTuple):
    """One thing about a model: state is "ok", "limited" (it is to be known) or "missing"."""

    what: str
    state: str
    detail: str


def examine(name: str) -> list[Remark]:
    """Settings, files, descriptor, size, tensors, tokenizer and prompts of a preset, folder or hub name.

    Raises RequestError for a name that is none of these.
    """
    preset = resolve(name)
    like = name if name in PRESETS else preset.like
    lines = [
        Remark(f"settings of {preset.name}", "ok", f"preset {like}" if like else "no preset is known: --like"),
        Remark(*weights_need(preset)),
    ]
    try:
        lines += _descriptor(preset)
        folder = config_folder(preset)
        config = config_of_checkpoint(preset)
        if config is not None:
            about = f"{config.family}, {config.attention} attention, {_size(config)}"
            lines.append(Remark("configuration", "ok", about))
            lines += [Remark(f"memory in {dtype}", "ok", _memory(config, width)) for dtype, width in _WIDTHS.items()]
        if folder is not None:
            lines += [_tensors(preset, folder), _tokenizer(preset, folder)]
        lines += _prompts(preset)
    except RequestError as error:
        lines.append(Remark("checkpoint", "missing", str(error)))
    return lines


_WIDTHS = {"float32": 4, "bfloat16": 2}


def _descriptor(preset: Preset) -> list[Remark]:
    settled = described(preset)
    said = settled.descriptor.said()
    lines = [Remark("family", "ok", family_of(preset) or "its config.json will say")]
    known = ", ".join(f"{name} {value} ({settled.sources[name]})" for name, value in said.items())
    lines.append(Remark("descriptor", "ok", known or "its files will say"))
    return lines + [Remark(name, "missing", f"not known: {place}") for name, place in asked_for(preset).items()]


def _size(config: BackboneConfig) -> str:
    active = f", of which a token meets {config.active_parameters / 1e6:,.1f} M" if config.experts else ""
    return f"{config.parameters / 1e6:,.1f} M parameters{active}, at most {config.max_positions:,} positions"


def _memory(config: BackboneConfig, width: int) -> str:
    """Weights, and with them keys and values of some rows."""
    row = 2 * config.num_layers * config.num_kv_heads * config.head_dim * TOKENS * width
    weights = config.parameters * width
    rows = ", ".join(f"{batch} {(weights + batch * row) / 2**30:.3g}" for batch in BATCHES)
    return f"weights {weights / 2**30:.3g} GiB; with rows of {TOKENS} tokens, by batch: {rows} GiB"


def _tensors(preset: Preset, folder: Path) -> Remark:
    from dlmbench.backbone.loading import compare_tensors

    found = compare_tensors(folder, preset.told)
    if found is None:
        return Remark("tensors", "limited", "neither an index nor weights are here to compare")
    missing, left = found
    if not missing and not left:
        return Remark("tensors", "ok", "all that the network has, and no others")
    parts = [f"{len(some)} {what}: {', '.join(some[:3])}" for some, what in ((missing, "missing"), (left, "left over"))
             if some]  # fmt: skip
    return Remark("tensors", "missing", "; ".join(parts))


def _tokenizer(preset: Preset, folder: Path) -> Remark:
    from dlmbench.backbone.loading import load_tokenizer

    place = Path(preset.tokenizer_location).expanduser()
    tokenizer = load_tokenizer(place if place.is_dir() else folder)
    chat = "with a chat template" if getattr(tokenizer, "chat_template", None) else "no chat template"
    return Remark("tokenizer", "ok", f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens, {chat}")


def _prompts(preset: Preset) -> list[Remark]:
    """How tasks are asked unless somebody says otherwise."""
    markup = "chat markup" if preset.chat_template else "raw prompts"
    lines = []
    for task in preset.tasks or TASKS:
        tokens = preset.gen_length.get(task)
        block = "the answer" if preset.whole_answer else preset.blocks.get(task, preset.block_length) or "asked for"
        eos = f", EOS {preset.eos[task]} under fixed schedules" if task in preset.eos else ""
        lines.append(
            Remark(f"task {task}", "ok", f"{markup}, {tokens or 'its own number of'} tokens, block {block}{eos}")
        )
    return lines
