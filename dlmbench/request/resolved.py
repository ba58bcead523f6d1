"""One run as it will happen: `ResolvedRun`, a spec with everything found out that can be known before weights are read.

Left out: what only the checkpoint's tensors can tell, and the task's items.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dlmbench.errors import RequestError
from dlmbench.models.compatibility import (
    attention_type,
    check_blocks,
    check_described,
    check_helper,
    fills_masks,
    store_of,
)
from dlmbench.models.descriptors import described, with_flags
from dlmbench.models.presets import Preset, resolve
from dlmbench.registry import DECODERS, load_plugin
from dlmbench.request import options
from dlmbench.request.key import same_items_and_weights
from dlmbench.request.rules import (
    USUAL_BLOCK,
    answer_of,
    check_attention,
    check_cache,
    check_protocol,
    check_sampling,
    check_shared,
    companion_of,
    gen_length_of,
    notes_on,
    protocol_notes,
)
from dlmbench.request.run_spec import DTYPES, RunSpec
from dlmbench.request.shared import SharedOptions
from dlmbench.request.values import one_of
from dlmbench.tasks.protocols import PROTOCOLS, Protocol, asked, protocol

if TYPE_CHECKING:
    from dlmbench.decoders.base import Decoder, Marker, Options
    from dlmbench.files import Json

_AUTO_BATCH = 16  # rows decoded together when nobody says


class Machine:
    """Who will do the work: what ``auto`` means there. This one is the machine at hand."""

    def device(self, wanted: str) -> str:
        """The device that is meant (imports torch for any but the CPU). Raises RequestError when it is not here."""
        if wanted.startswith("cpu"):
            return wanted
        import torch

        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if wanted == "auto":
            return "cuda" if found else "cpu"
        if not found:
            raise RequestError(f"device is {wanted} and torch finds no CUDA device here: use --device cpu.")
        if int(wanted.partition(":")[2] or 0) >= found:
            raise RequestError(f"device is {wanted}; here are {', '.join(f'cuda:{i}' for i in range(found))}.")
        return wanted

    def batch_size(self, run: ResolvedRun) -> int:
        """Rows decoded together where nobody says."""
        return _AUTO_BATCH


class Anywhere(Machine):
    """A machine that has whatever is asked for: for plans, which list what is missing instead of refusing it."""

    def device(self, wanted: str) -> str:
        try:
            return super().device(wanted)
        except RequestError:
            return wanted


def dtype_on(device: str, dtype: str) -> str:
    """What is computed in on this device. Raises RequestError for a dtype that is none."""
    dtype = one_of(DTYPES)(dtype, "dtype")
    return dtype if dtype != "auto" else ("float32" if device == "cpu" else "bfloat16")


@dataclass(frozen=True)
class ResolvedRun:
    """A run with nothing left open. Made by `RunSpec.resolve`."""

    spec: RunSpec  # as it was asked for
    preset: Preset
    decoder: type[Decoder]
    config: Options  # the decoder's bound options
    companions: dict[str, str]  # role -> model
    block_length: int
    shared: SharedOptions  # options of cache and sampling
    notes: tuple[str, ...]  # sentences for the user
    fixed: Marker | None = None  # the task's answer marker, when it is written in advance
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = _AUTO_BATCH
    trial: bool = False  # a setting that competes on dev items: nothing of it is shown but accuracy and cost
    reported: bool = False  # whatever dev says

    def on(self, machine: Machine) -> ResolvedRun:
        """The same run on a machine. Raises RequestError for a device that it does not have."""
        device = machine.device(self.spec.device)
        run = replace(self, device=device, dtype=dtype_on(device, self.spec.dtype))
        asked = self.spec.batch_size
        return replace(run, batch_size=asked if isinstance(asked, int) else machine.batch_size(run))

    @property
    def settled(self) -> RunSpec:
        """The spec with nothing left to ``auto``."""
        return replace(self.spec, device=self.device, dtype=self.dtype, batch_size=self.batch_size)

    @property
    def attention(self) -> str | None:
        """Of the model; None when only its checkpoint can tell."""
        return attention_type(self.preset)

    @cached_property
    def label(self) -> str:
        """How its row is called."""
        words = self._words(lambda owner: owner != "oracle")
        cache = [self.spec.cache] if self.spec.cache != "none" else []
        helpers = [f"{role}={Path(name).name}" for role, name in self.companions.items() if self._unusual(role, name)]
        words += [] if self.trained else ["(model not trained for it)"]
        asked_as = asked(self.spec.protocol, self.spec.task)
        words += [f"({asked_as.other.partition(':')[0]})"] if asked_as and asked_as.other else []
        return " ".join([options.label(self.spec.method, self.config), *cache, *helpers, *words])

    @property
    def model_label(self) -> str:
        """How its model is called; an ideal one by its options too."""
        return " ".join([self.preset.name, *self._words(lambda owner: owner == "oracle")])

    def _words(self, of: Callable[[str], bool]) -> list[str]:
        chosen = [(name.partition("."), value) for name, value in self.shared.chosen().items()]
        return [f"{name}={value}" for (owner, _, name), value in chosen if of(owner)]

    @property
    def trained(self) -> bool:
        """Is the model made for the method, where a model has to be?"""
        return not self.decoder.needs_training or self.spec.method in self.preset.trained

    def _unusual(self, role: str, name: str) -> bool:
        try:
            return companion_of(self.spec, self.preset, role, None) != name
        except RequestError:
            return False  # the model names none, so there is no other to tell it from

    @property
    def threshold(self) -> float | None:
        """Value of the method's threshold, None where it has none or makes no use of it."""
        name = options.used_threshold(self.config)
        return getattr(self.config, name) if name else None

    @property
    def threshold_unit(self) -> str:
        """``confidence`` where the threshold is a probability that a position must pass, else empty."""
        return options.threshold_unit(type(self.config)) if self.threshold is not None else ""

    @property
    def parameters(self) -> dict[str, Json]:
        """Every option of the method, after defaults."""
        return options.flat(self.config)

    @property
    def version(self) -> str:
        """The decoder's version; for one from outside the package also a hash of its file, since authors forget."""
        module = sys.modules.get(self.decoder.__module__)
        file = getattr(module, "__file__", None)
        if self.decoder.__module__.split(".")[0] == "dlmbench" or not file:
            return str(self.decoder.version)
        return f"{self.decoder.version}-{hashlib.sha256(Path(file).read_bytes()).hexdigest()[:8]}"

    @property
    def gen_length(self) -> int | None:
        """Most generated tokens an item, set by flag, protocol or preset; None leaves it to the task."""
        return gen_length_of(self.spec, self.preset)

    @property
    def protocol(self) -> Protocol | None:
        """The published protocol that asks; None for lm-eval's."""
        return protocol(self.spec.protocol)

    @property
    def chat_template(self) -> bool:
        if self.protocol:
            return self.protocol.chat
        return self.preset.chat_template if self.spec.chat_template is None else self.spec.chat_template

    @property
    def eos(self) -> str:
        """What becomes of EOS: free, never or last.

        A model's own control belongs to fixed schedules, as it was published: a confidence that EOS positions never
        reach would cost adaptive decoders one forward for each of them, and cache policies were published without.
        """
        wanted = self.shared.sampling.eos
        if wanted == "model" and self.protocol:
            wanted = self.protocol.eos
        if wanted != "model":
            return wanted
        controlled = self.decoder.fixed_schedule and self.spec.cache == "none"
        return self.preset.eos.get(self.spec.task.partition("/")[0], "free") if controlled else "free"


def resolved(spec: RunSpec, machine: Machine | None = None) -> ResolvedRun:
    """See `RunSpec.resolve`."""
    if spec.plugin:
        load_plugin(spec.plugin)
    check_protocol(spec)
    decoder = DECODERS.get(spec.method)
    preset = with_flags(resolve(spec.model, spec.like), spec.descriptor)
    check_described(preset, spec.block_length)
    config, notes = bind_options(spec, decoder, preset)
    notes += notes_on(preset, spec) + protocol_notes(spec)
    published = PROTOCOLS[spec.protocol].sampling if spec.protocol in PROTOCOLS else {}
    sampling = {**preset.settings.get("sampling", {}), **published}
    shared = SharedOptions.bind(spec.settings, {**preset.settings, "sampling": sampling})
    attention = attention_type(preset)
    fixed = check_shared(spec, preset, decoder, shared)
    config = decoder.on_task(config, attention, fixed, answer_of(spec.task) is not None)
    check_attention(spec, preset, decoder, attention)
    known = described(preset).descriptor
    check_blocks(preset, known, decoder)
    spec = replace(spec, store=store_of(preset, known, spec.store))
    check_sampling(spec, decoder, config)
    check_cache(spec, preset, decoder, attention)
    needed = decoder.needs(config, attention)
    companions = {
        role: companion_of(spec, preset, role, getattr(spec, role, None)) for role in needed if role != "target"
    }
    for role, name in companions.items():
        check_helper(role, preset, resolve(name))
    if decoder.needs_training and spec.method not in preset.trained:
        notes.append(f"{preset.name} is not known to have been trained for {spec.method}: its rows say so.")
    if preset.tasks and spec.task.partition("/")[0] not in preset.tasks:
        notes.append(
            f"{spec.model} was trained for {', '.join(preset.tasks)} only: expect a score near zero on {spec.task}."
        )
    block_length = _block_length(spec, preset, attention)
    run = ResolvedRun(spec, preset, decoder, config, companions, block_length, shared, tuple(notes), fixed)
    return run.on(machine or Machine())


def _block_length(spec: RunSpec, preset: Preset, attention: str | None) -> int:
    if attention == "causal":  # one position at a time, whatever the preset says
        return 1
    if spec.block_length:
        return spec.block_length
    task = spec.task.partition("/")[0]
    usual = preset.blocks.get(task, preset.block_length or USUAL_BLOCK)
    return (gen_length_of(spec, preset) or usual) if preset.whole_answer else usual


def bind_options(spec: RunSpec, decoder: type[Decoder], preset: Preset) -> tuple[Options, list[str]]:
    """The decoder's options: the preset's, then ``--set``, then ``--threshold``; with notes for the user. Raises
    RequestError for what does not fit."""
    values = {**preset.settings.get(spec.method, {}), **spec.settings.get(spec.method, {})}
    config: Options = options.bind(decoder.Config, values, spec.method)
    if spec.threshold is None:
        return config, []
    name = options.threshold_field(decoder.Config)
    if name is None:
        return config, [f"{spec.method} has no threshold; it runs at its default."]
    if name in spec.settings.get(spec.method, {}):
        raise RequestError(f"--threshold and --set {spec.method}.{name} are the same option; give one of them.")
    if options.used_threshold(config) is None:
        label = options.label(spec.method, config)
        return config, [f"{label} makes no use of {name}; --threshold changes nothing."]
    notes = []
    if options.threshold_unit(decoder.Config) == "confidence" and not 0 <= spec.threshold <= 1:
        who = "every position passes it" if spec.threshold < 0 else "no position passes it"
        notes = [f"threshold {spec.threshold:g} is no confidence, which lies between 0 and 1: {who}."]
    return options.bind(decoder.Config, {**values, name: spec.threshold}, spec.method), notes


# --- baselines ------------------------------------------------------------------------------------------------------


def with_baselines(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Add the methods of ``against`` to every group of runs on the same items and weights that lacks them.

    Nothing is added on weights that they cannot fill masks with: autoregressive ones, and blocks under a head that
    predicts the next position. The threshold baseline runs at every confidence that a
    method of its group runs at, so that it gets as many settings; values of other thresholds mean nothing to it, and it
    runs at its default beside them. Static of several tokens a step is no reference for those of one.
    """
    groups: dict[str, list[RunSpec]] = {}
    for spec in specs:
        groups.setdefault(same_items_and_weights(spec), []).append(spec)
    found: list[RunSpec] = []
    for group in groups.values():
        first, added = group[0], []
        usable = not first.served and fills_masks(with_flags(resolve(first.model, first.like), first.descriptor))
        for name in first.against if usable else ():
            if any(_is_baseline(spec, name) for spec in group):
                continue
            given = [spec for spec in group if spec.threshold is not None] if name == "threshold" else []
            tried = [spec.threshold for spec in given if _is_confidence(spec)]
            thresholds = list(dict.fromkeys(tried)) or [None]
            own = first.settings.get(name, {}) if first.method != name else {}
            added += [first.baseline(name, one, own) for one in thresholds]
        found += added + group
    return found


def _is_baseline(spec: RunSpec, name: str) -> bool:
    """Is this a run that the baseline `name` is there for?"""
    if spec.method != name:
        return False
    return name != "static" or str(spec.settings.get(name, {}).get("k", 1)) == "1"


def _is_confidence(spec: RunSpec) -> bool:
    """Does the method's threshold mean what the threshold baseline's does?"""
    if spec.plugin:
        load_plugin(spec.plugin)
    return options.threshold_unit(DECODERS.get(spec.method).Config) == "confidence"
