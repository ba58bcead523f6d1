"""One run: `RunSpec` from flags or YAML, and `Checked`, what its check found.

Two stages keep errors early and ``--help`` fast. Building a spec checks everything that needs no import (numbers,
names, ranges). `RunSpec.check` then looks up the model preset and the decoder class (this imports torch, but loads no
weight), binds the options, and refuses combinations that cannot work, with the reason and the remedy.

Left out: hardware. ``auto`` for device, dtype and batch size stays in the spec until `RunSpec.resolved`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dlmbench.errors import RequestError
from dlmbench.models.compatibility import attention_of, attention_type, check_blocks, check_described, check_helper
from dlmbench.models.descriptors import described
from dlmbench.models.presets import Preset, default_model, resolve
from dlmbench.registry import DECODERS, load_plugin
from dlmbench.request import options
from dlmbench.request.rules import (
    USUAL_BLOCK,
    answer_of,
    check_attention,
    check_cache,
    check_sampling,
    check_shared,
    companion_of,
    notes_on,
)
from dlmbench.request.shared import OWNERS, Axes
from dlmbench.request.values import BASELINES, CONVERTERS, HELPERS, dtype_on, present

_AUTO_BATCH = 16  # rows decoded together when nobody says


@dataclass(frozen=True)
class RunSpec:
    """One cell of a table: a method at one setting, on one task, with one model."""

    method: str  # decoder name
    task: str  # task name
    model: str = field(default_factory=default_model)  # preset, checkpoint folder or hub name
    like: str | None = None  # the preset whose settings a folder or hub name takes, or none
    threshold: float | None = None  # value of the method's knob
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # {method: {option: value}} of --set
    against: tuple[str, ...] = BASELINES  # methods whose rows come along
    limit: int | None = None  # first N items
    split: str = "test"  # "dev" chooses settings, "test" reports them
    draft: str | None = None
    guide: str | None = None
    reference: str | None = None
    head: str | None = None
    block_length: int | None = None  # positions decoded together
    gen_length: int | None = None  # most generated tokens an item
    cache: str = "none"  # cache policy of bidirectional families
    store: str = "fused"  # who writes a finished block's keys and values
    num_fewshot: int | None = None
    chat_template: bool | None = None
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    batch_size: int | str = "auto"  # rows decoded together
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    data_dir: str | None = None  # folder of local JSONL
    out: str = "runs"  # where run folders are made
    plugin: str | None = None  # Python file that registers a decoder

    def __post_init__(self) -> None:
        for name, convert in CONVERTERS.items():
            object.__setattr__(self, name, convert(getattr(self, name), name))
        if self.top_p == 0:
            raise RequestError("top_p is 0, which keeps no token; it lies above 0 and at most at 1.")
        strangers = [name for name in self.settings if name not in (self.method, *self.against, *OWNERS)]
        if strangers:
            raise RequestError(f"--set names {strangers[0]}, which is not a method of this run ({self.method}).")

    def check(self) -> Checked:
        """Look up model and method, bind the options, refuse what cannot work. Loads no weights.

        Raises RequestError with the reason and the remedy.
        """
        if self.plugin:
            load_plugin(self.plugin)
        decoder = DECODERS.get(self.method)
        preset = resolve(self.model, self.like)
        check_described(preset, self.block_length)
        config, notes = self._bind(decoder, preset)
        notes += notes_on(preset, self)
        shared = Axes.bind(self.settings, preset.settings)
        attention = attention_type(preset)
        fixed = check_shared(self, preset, decoder, shared)
        config = decoder.on_task(config, attention, fixed, answer_of(self.task) is not None)
        check_attention(self, preset, decoder)
        check_blocks(preset, described(preset).descriptor, decoder)
        check_sampling(self, decoder, config)
        check_cache(self, preset, decoder)
        needed = decoder.needs(config, attention)
        companions = {role: companion_of(self, preset, role) for role in needed if role != "target"}
        for role, name in companions.items():
            check_helper(role, preset, resolve(name))
        if preset.tasks and self.task.partition("/")[0] not in preset.tasks:
            notes.append(
                f"{self.model} was trained for {' and '.join(preset.tasks)} only: expect a score near zero "
                f"on {self.task}."
            )
        causal = attention == "causal"  # one position at a time, whatever the preset says
        block_length = 1 if causal else self.block_length or preset.block_length or USUAL_BLOCK
        if not self.block_length and not causal:
            block_length = preset.blocks.get(self.task.partition("/")[0], block_length)
            if preset.whole_answer:
                block_length = self.gen_length or preset.gen_length.get(self.task.partition("/")[0], block_length)
        return Checked(self, preset, decoder, config, companions, block_length, tuple(notes), shared, fixed)

    def _bind(self, decoder: Any, preset: Preset) -> tuple[Any, list[str]]:
        values = {**preset.settings.get(self.method, {}), **self.settings.get(self.method, {})}
        config = options.bind(decoder.Config, values, self.method)
        if self.threshold is None:
            return config, []
        knob = options.knob(decoder.Config)
        if knob is None:
            return config, [f"{self.method} has no threshold; it runs at its default."]
        if knob in self.settings.get(self.method, {}):
            raise RequestError(f"--threshold and --set {self.method}.{knob} are the same option; give one of them.")
        if options.dial(config) is None:
            label = options.label(self.method, config)
            return config, [f"{label} makes no use of {knob}; --threshold changes nothing."]
        return options.bind(decoder.Config, {**values, knob: self.threshold}, self.method), []

    def resolved(self, device: str | None = None) -> RunSpec:
        """The same spec with ``auto`` replaced by what this machine offers (imports torch), or by what another machine
        with this `device` does.

        Raises RequestError for a device that is not here.
        """
        device = device or present(self.device)
        dtype = dtype_on(device, self.dtype)
        batch_size = _AUTO_BATCH if self.batch_size == "auto" else self.batch_size
        return replace(self, device=device, dtype=dtype, batch_size=batch_size)

    def baselines(self) -> list[RunSpec]:
        """The specs of ``--against``, on the same model and items; empty on causal weights, which cannot fill masks.

        The threshold baseline takes over the knob's value where that is a confidence too, else it runs at its default.
        """
        if attention_of(self.model) == "causal":
            return []
        tau = self.threshold if self.threshold is not None and knob_is_confidence(self) else None
        return [
            self.baseline(name, tau if name == "threshold" else None, self.settings.get(name, {}))
            for name in self.against
        ]

    def baseline(self, method: str, threshold: float | None, own: Mapping[str, Any] = MappingProxyType({})) -> RunSpec:
        """This run by another method, with that method's `own` settings, beside which it is judged."""
        return replace(
            self,
            method=method,
            threshold=threshold,
            settings={**({method: own} if own else {}), **self.shared_settings},
            cache="none" if self.cache == "prompt" else self.cache,  # a policy of one method
        )

    @property
    def shared_settings(self) -> dict[str, dict[str, Any]]:
        """Settings that reach every method of the run."""
        return {owner: dict(self.settings[owner]) for owner in OWNERS if owner in self.settings}

    def portable(self) -> dict[str, Any]:
        """The spec as JSON that names no place on this machine: folders and files become their last component."""
        record = dataclasses.asdict(self)
        for name in ("model", *HELPERS, "plugin"):
            if record[name] and (Path(record[name]).is_absolute() or Path(record[name]).exists()):
                record[name] = Path(record[name]).name
        record["settings"] = {self.method: dict(self.settings.get(self.method, {})), **self.shared_settings}
        del record["out"], record["data_dir"], record["against"]
        return record


@dataclass(frozen=True)
class Checked:
    """A spec that passed `RunSpec.check`, with what the check found."""

    spec: RunSpec
    preset: Preset
    decoder: Any  # the decoder class
    config: Any  # its bound options
    companions: dict[str, str]  # role -> model
    block_length: int
    notes: tuple[str, ...]  # sentences for the user
    axes: Axes  # options of cache and sampling
    fixed: Mapping[str, Any] | None = None  # the task's answer marker, when it is written in advance

    @property
    def label(self) -> str:
        words = [f"{name.partition('.')[2]}={value}" for name, value in self.axes.chosen().items()]
        cache = [self.spec.cache] if self.spec.cache != "none" else []
        helpers = [f"{role}={Path(name).name}" for role, name in self.companions.items() if self._unusual(role, name)]
        return " ".join([options.label(self.spec.method, self.config), *cache, *helpers, *words])

    def _unusual(self, role: str, name: str) -> bool:
        usual = replace(self.spec, **{role: None})
        try:
            return companion_of(usual, self.preset, role) != name
        except RequestError:
            return False  # the model names none, so there is no other to tell it from

    @property
    def parameters(self) -> dict[str, Any]:
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
        """Most generated tokens an item, set by flag or preset; None leaves it to the task."""
        return self.spec.gen_length or self.preset.gen_length.get(self.spec.task.partition("/")[0])

    @property
    def chat_template(self) -> bool:
        return self.preset.chat_template if self.spec.chat_template is None else self.spec.chat_template

    @property
    def eos(self) -> str:
        """What becomes of EOS: free, never or last.

        A model's own control belongs to fixed schedules, as it was published: a confidence that EOS positions never
        reach would cost adaptive decoders one forward for each of them, and cache policies were published without.
        """
        wanted = self.axes.sampling.eos
        if wanted != "model":
            return wanted
        controlled = self.decoder.fixed_schedule and self.spec.cache == "none"
        return self.preset.eos.get(self.spec.task.partition("/")[0], "free") if controlled else "free"

    def same_cell(self) -> str:
        """Equal strings are the same run on this machine (used to drop duplicates before anything is loaded)."""
        used = {role: self.companions.get(role) for role in HELPERS}  # a helper may be named for the method beside it
        record = dataclasses.asdict(replace(self.spec, threshold=None, settings={}, against=(), **used))
        return json.dumps([record, self.parameters, self.axes.chosen()], sort_keys=True, default=str)


def knob_is_confidence(spec: RunSpec) -> bool:
    """Does the method's knob mean what the threshold baseline's does?"""
    if spec.plugin:
        load_plugin(spec.plugin)
    return options.knob_unit(DECODERS.get(spec.method).Config) == "confidence"
