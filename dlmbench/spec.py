"""What a run is: `RunSpec` from flags or YAML, `SweepSpec` as a list of them, and the key that names a finished run.

Two stages keep errors early and ``--help`` fast. Building a spec checks everything that needs no import (numbers,
names, ranges). `RunSpec.check` then looks up the model preset and the decoder class (this imports torch, but loads no
weight), binds the options, and refuses combinations that cannot work, with the reason and the remedy.

Left out: hardware. ``auto`` for device, dtype and batch size stays in the spec until `RunSpec.resolved`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dlmbench import options
from dlmbench.axes import OWNERS, Axes
from dlmbench.companions import check_companion
from dlmbench.errors import RequestError
from dlmbench.presets import PRESETS, Preset, default_model, resolve
from dlmbench.registry import DECODERS, load_plugin

CACHES = ("none", "prefix", "dual", "freecache", "prompt")
STORES = ("fused", "separate")
DTYPES = ("auto", "float32", "bfloat16", "float16")
SPLITS = ("test", "dev")
HELPERS = ("draft", "guide", "reference", "head")
BASELINES = ("static", "threshold")
ATTENTION = {  # family -> attention type, the word a decoder declares
    "sdar": "block_causal",
    "qwen3": "causal",
    "qwen2": "causal",
    "llama": "causal",
    "llada": "full",
    "dream": "full",
}
_AUTO_BATCH = 16  # rows decoded together when nobody says


@dataclass(frozen=True)
class RunSpec:
    """One cell of a table: a method at one setting, on one task, with one model."""

    method: str  # decoder name
    task: str  # task name
    model: str = field(default_factory=default_model)  # preset, checkpoint folder or hub name
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
        for name, convert in _CONVERTERS.items():
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
        preset = resolve(self.model)
        config, notes = self._bind(decoder, preset)
        shared = Axes.bind(self.settings, preset.settings)
        fixed = _check_shared(self, preset, decoder, shared)
        config = decoder.on_task(config, ATTENTION.get(_family(preset) or ""), fixed, _answer(self.task) is not None)
        _check_attention(self, preset, decoder)
        _check_sampling(self, decoder, config)
        _check_cache(self, preset, decoder)
        needed = decoder.needs(config, ATTENTION.get(_family(preset) or ""))
        companions = {role: _companion(self, preset, role) for role in needed if role != "target"}
        for role, name in companions.items():
            _check_companion(role, preset, resolve(name))
        if preset.tasks and self.task.partition("/")[0] not in preset.tasks:
            notes.append(
                f"{self.model} was trained for {' and '.join(preset.tasks)} only: expect a score near zero "
                f"on {self.task}."
            )
        causal = ATTENTION.get(_family(preset) or "") == "causal"  # one position at a time, whatever the preset says
        if preset.family is None and not self.block_length and not causal:
            notes.append(f"block length {preset.block_length} assumed for {preset.name}; give --block-length.")
        block_length = 1 if causal else self.block_length or preset.block_length
        if not self.block_length and not causal:
            block_length = preset.blocks.get(self.task.partition("/")[0], block_length)
            if preset.whole_answer:
                block_length = self.gen_length or preset.gen_length.get(self.task.partition("/")[0], block_length)
        return Checked(self, preset, decoder, config, companions, block_length, tuple(notes), shared, fixed)

    def _bind(self, decoder: Any, preset: Preset) -> tuple[Any, list[str]]:
        values, notes = dict(self.settings.get(self.method, {})), []
        if self.threshold is not None:
            dial = options.knob(decoder.Config)
            if dial is None:
                notes.append(f"{self.method} has no threshold; it runs at its default.")
            elif dial in values:
                raise RequestError(f"--threshold and --set {self.method}.{dial} are the same option; give one of them.")
            else:
                values[dial] = self.threshold
        return options.bind(decoder.Config, {**preset.settings.get(self.method, {}), **values}, self.method), notes

    def resolved(self) -> RunSpec:
        """The same spec with ``auto`` replaced by what this machine offers. Imports torch.

        Raises RequestError for a device that is not here.
        """
        device = _present(self.device)
        dtype = self.dtype if self.dtype != "auto" else ("float32" if device == "cpu" else "bfloat16")
        batch_size = _AUTO_BATCH if self.batch_size == "auto" else self.batch_size
        return replace(self, device=device, dtype=dtype, batch_size=batch_size)

    def baselines(self) -> list[RunSpec]:
        """The specs of ``--against``, on the same model and items; empty on causal weights, which cannot fill masks.

        The threshold baseline takes over the knob's value where that is a confidence too, else it runs at its default.
        """
        if attention_of(self.model) == "causal":
            return []
        tau = self.threshold if self.threshold is not None and _knob_is_confidence(self) else None
        return [
            replace(
                self,
                method=name,
                threshold=tau if name == "threshold" else None,
                settings={name: self.settings.get(name, {}), **self.shared_settings},
                cache="none" if self.cache == "prompt" else self.cache,  # a policy of one method
            )
            for name in self.against
        ]

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
        return " ".join([options.label(self.spec.method, self.config), *cache, *words])

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
        """What becomes of EOS: free, never or last."""
        wanted = self.axes.sampling.eos
        return self.preset.eos.get(self.spec.task.partition("/")[0], "free") if wanted == "model" else wanted

    def same_cell(self) -> str:
        """Equal strings are the same run on this machine (used to drop duplicates before anything is loaded)."""
        record = dataclasses.asdict(replace(self.spec, threshold=None, settings={}, against=()))
        return json.dumps([record, self.parameters, self.axes.chosen()], sort_keys=True, default=str)


def _present(device: str) -> str:
    """The device that is meant, which must be here."""
    if device.startswith("cpu"):
        return device
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if found else "cpu"
    if not found:
        raise RequestError(f"device is {device} and torch finds no CUDA device here: use --device cpu.")
    if int(device.partition(":")[2] or 0) >= found:
        raise RequestError(f"device is {device}; here are {', '.join(f'cuda:{i}' for i in range(found))}.")
    return device


def _knob_is_confidence(spec: RunSpec) -> bool:
    """Does the method's knob mean what the threshold baseline's does?"""
    if spec.plugin:
        load_plugin(spec.plugin)
    return options.knob_unit(DECODERS.get(spec.method).Config) == "confidence"


def attention_of(model: str) -> str | None:
    """Attention type of a model's family, None when only its checkpoint can tell (a hub name)."""
    return ATTENTION.get(_family(resolve(model)) or "")


def _family(preset: Preset) -> str | None:
    if preset.family:
        return preset.family
    config = Path(preset.location).expanduser() / "config.json"
    return json.loads(config.read_text()).get("model_type", "").lower() if config.is_file() else None


def _answer(task: str) -> Mapping[str, Any] | None:
    """A task's answer marker: {"text", "position", "window"}, positions counted from the prompt's end."""
    from dlmbench.tasks import cards

    card = cards.find(task)
    return card.metadata.get("answer") if card else None


def _check_shared(spec: RunSpec, preset: Preset, decoder: Any, shared: Axes) -> Mapping[str, Any] | None:
    """Refuse options of cache and sampling that cannot act; returns the marker that is to be written in advance."""
    full = ATTENTION.get(_family(preset) or "") in ("full", None)
    idle = [name for name in shared.chosen() if name not in ("sampling.constraint", "sampling.filtered")]
    if idle and not full:
        raise RequestError(f"{idle[0]} is for bidirectional models and {spec.model} is none: leave it out.")
    freezing = ("freecache",)
    policies = {"cache.refresh_every": ("prefix", "dual"), "cache.freeze": freezing, "cache.window": freezing}
    for name in shared.chosen():
        if name in policies and spec.cache not in policies[name]:
            raise RequestError(f"{name} belongs to --cache {' or '.join(policies[name])}, this run has {spec.cache}.")
    if shared.sampling.guidance and not decoder.guidable:
        raise RequestError(f"Method {spec.method} does not work with guidance: leave sampling.guidance out.")
    if not shared.sampling.constraint:
        return None
    answer = _answer(spec.task)
    if answer is None:
        raise RequestError(f"Task {spec.task} names no answer marker: leave sampling.constraint out.")
    budget = spec.gen_length or preset.gen_length.get(spec.task.partition("/")[0])
    if budget is not None and budget <= answer["window"]:
        raise RequestError(
            f"The answer marker of {spec.task} stands at position {answer['position']} and {budget} tokens are too few "
            f"for it: --gen-length must be above {answer['window']}."
        )
    return answer


def _check_attention(spec: RunSpec, preset: Preset, decoder: Any) -> None:
    attention = ATTENTION.get(_family(preset) or "")
    if attention is None or attention in decoder.attention:
        return
    if attention == "causal":
        remedy = "use --method ar, or a diffusion model such as nano"
        raise RequestError(f"Method {spec.method} fills masks and {spec.model} is autoregressive: {remedy}.")
    if decoder.attention == ("causal",):
        parent = preset.companions.get("guide")
        causal = parent if parent in PRESETS and ATTENTION.get(PRESETS[parent].family or "") == "causal" else "nano-ar"
        raise RequestError(
            f"Method {spec.method} reads left to right and {spec.model} is a diffusion model: use --model {causal}."
        )
    raise RequestError(
        f"Method {spec.method} works with {' or '.join(decoder.attention)} attention and {spec.model} "
        f"has {attention}: choose another --model or --method."
    )


def _check_cache(spec: RunSpec, preset: Preset, decoder: Any) -> None:
    attention = ATTENTION.get(_family(preset) or "")
    if spec.cache != "none" and attention in ("block_causal", "causal"):
        kind = "block-causal" if attention == "block_causal" else "autoregressive"
        raise RequestError(
            f"Cache policy {spec.cache} approximates bidirectional attention and {spec.model} is "
            f"{kind}, whose cache is exact already: leave --cache out."
        )
    if attention == "full" and spec.cache not in decoder.caches:
        raise RequestError(
            f"Method {spec.method} does not work with cache policy {spec.cache}, which hides positions that it needs: "
            f"use --cache {' or '.join(decoder.caches)}."
        )


def _check_sampling(spec: RunSpec, decoder: Any, config: Any) -> None:
    from dlmbench.decoders.predict import Sampling

    objection = decoder.objection(config, Sampling(spec.temperature, spec.top_k, spec.top_p))
    if objection:
        raise RequestError(objection)


def _companion(spec: RunSpec, preset: Preset, role: str) -> str:
    given = getattr(spec, role, None) or preset.companions.get(role)
    if role == "head":
        given = given or (spec.model if _holds_head(preset) else None)
        if given is None:
            raise RequestError(
                f"Method {spec.method} needs a trained head and {spec.model} has none: give its folder with --head "
                f"(dlmbench train recipes/train-{spec.method}-nano.yaml makes one for nano)."
            )
        resolve(given)
    if given is None:
        raise RequestError(f"Method {spec.method} needs a {role} model and {spec.model} names none: give --{role}.")
    return given


def _check_companion(role: str, target: Preset, helper: Preset) -> None:
    """A draft attends like its target, a guide reads left to right, and both share the target's tokens."""
    ours, theirs = (ATTENTION.get(_family(preset) or "") for preset in (target, helper))
    wanted = {"draft": ours, "reference": ours, "guide": "causal"}.get(role)
    if wanted and theirs and theirs != wanted:
        raise RequestError(
            f"The {role} {helper.name} has {theirs} attention and {wanted} is needed: give another --{role}."
        )
    check_companion(role, target, helper)


def _holds_head(preset: Preset) -> bool:
    """Is this a local checkpoint with a module inside (the authors' MRP layout)?"""
    config = Path(preset.location).expanduser() / "config.json"
    return config.is_file() and bool(json.loads(config.read_text()).get("num_nextn_predict_layers"))


# --- values of the fields -------------------------------------------------------------------------------------------


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{name} is {value!r}; it takes a name.")
    return value.strip()


def _optional(inner: Any) -> Any:
    return lambda value, name: None if value is None else inner(value, name)


def _number(kind: type, low: float | None = None, high: float | None = None) -> Any:
    def convert(value: Any, name: str) -> Any:
        number = options.convert(value, kind, name)
        if (low is not None and number < low) or (high is not None and number > high) or number != number:
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise RequestError(f"{name} is {number}; it must be {bounds}.")
        return number

    return convert


def _one_of(choices: Sequence[str]) -> Any:
    def convert(value: Any, name: str) -> str:
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise RequestError(f"{name} is {value!r}: {hint}It takes one of {', '.join(choices)}.")
        return value

    return convert


def _batch_size(value: Any, name: str) -> int | str:
    return value if value == "auto" else _number(int, 1)(value, name)


def _device(value: Any, name: str) -> str:
    kind, _, index = str(value).partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not index.isdigit()):
        raise RequestError(f"{name} is {value!r}; it takes auto, cpu, cuda or cuda:N.")
    return str(value)


def _flag(value: Any, name: str) -> bool | None:
    return options.convert(value, bool, name)


def _names(value: Any, name: str) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else list(value or ())
    names = tuple(part.strip() for part in parts if part.strip())
    return () if names == ("none",) else names


def _settings(value: Any, name: str) -> dict[str, dict[str, Any]]:
    if not isinstance(value, Mapping) or not all(isinstance(inner, Mapping) for inner in value.values()):
        raise RequestError(f"{name} is {value!r}; it maps methods to their options.")
    return {method: dict(inner) for method, inner in value.items()}


_CONVERTERS: dict[str, Any] = {
    "method": _text,
    "task": _text,
    "model": _text,
    "threshold": _optional(_number(float)),
    "settings": _settings,
    "against": _names,
    "limit": _optional(_number(int, 1)),
    "split": _one_of(SPLITS),
    **{role: _optional(_text) for role in HELPERS},
    "block_length": _optional(_number(int, 1)),
    "gen_length": _optional(_number(int, 1)),
    "cache": _one_of(CACHES),
    "store": _one_of(STORES),
    "num_fewshot": _optional(_number(int, 0)),
    "chat_template": _optional(_flag),
    "temperature": _number(float, 0),
    "top_k": _number(int, 0),
    "top_p": _number(float, 0, 1),
    "batch_size": _batch_size,
    "device": _device,
    "dtype": _one_of(DTYPES),
    "seed": _number(int, 0),
    "data_dir": _optional(_text),
    "out": _text,
    "plugin": _optional(_text),
}
FIELDS = tuple(_CONVERTERS)


# --- sweeps ---------------------------------------------------------------------------------------------------------

SINGLE = ("against", "out", "plugin", "data_dir", "settings")  # options that a sweep does not expand
_RECIPE_KEYS = ("name", "description", "tasks", "methods", "tune_on")


@dataclass(frozen=True)
class SweepSpec:
    """A list of cells and what to do with them."""

    name: str
    cells: tuple[RunSpec, ...]
    out: str = "runs"
    tune_on: str | None = None  # "dev": each method's setting is chosen there, and reported on test
    description: str = ""

    def __post_init__(self) -> None:
        if not self.cells:
            raise RequestError(f"Sweep {self.name!r} has no cells; name at least one method and one task.")
        if self.tune_on not in (None, "dev"):
            raise RequestError(f"tune_on is {self.tune_on!r}; settings are chosen on dev or not at all.")
        if self.tune_on in {cell.split for cell in self.cells}:
            raise RequestError("Settings chosen on dev cannot be reported on dev: leave --split or --tune-on out.")

    @classmethod
    def from_recipe(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> SweepSpec:
        """Read a recipe file; `overrides` (flags) win over everything in it.

        A recipe has ``tasks`` and ``methods``, lists of names or of mappings with any option of ``run`` (and ``set``);
        every other key is an option for all cells. Values may be lists or ranges.
        """
        record = read_recipe(path)
        given = dict(overrides or {})
        return _sweep(record, given, default_name=Path(path).stem)

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> SweepSpec:
        """The same from flags: ``method``, ``task``, ``set`` and any option, as lists or ranges."""
        given = dict(flags)
        record = {
            "tasks": options.parse_values(given.pop("task", None) or []),
            "methods": options.parse_values(given.pop("method", None) or []),
        }
        for needed, flag in (("tasks", "--task"), ("methods", "--method")):
            if not record[needed]:
                raise RequestError(
                    f"A sweep needs {flag} or a recipe file; for example "
                    "dlmbench sweep --method static,threshold --task nano-gsm."
                )
        return _sweep(record, given, default_name="sweep")

    def checked(self) -> tuple[list[Checked], list[str]]:
        """Every cell and the baselines that are not among them, checked, with the notes for the user.

        Duplicates are dropped: a method without a knob runs once.
        """
        unique: dict[str, Checked] = {}
        for cell in _with_baselines(self.cells):
            found = cell.check()
            unique.setdefault(found.same_cell(), found)
        notes = [note for found in unique.values() for note in found.notes]
        return list(unique.values()), list(dict.fromkeys(notes))


def read_recipe(path: str | Path) -> dict[str, Any]:
    """A recipe file as a mapping. Raises RequestError when it is missing or no mapping."""
    import yaml

    path = Path(path)
    if not path.is_file():
        raise RequestError(f"Recipe {str(path)!r} does not exist; dlmbench list recipes shows those that do.")
    try:
        record = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise RequestError(f"Recipe {path.name} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(record, dict):
        raise RequestError(f"Recipe {path.name} must be a mapping of options.")
    return record


def _sweep(record: Mapping[str, Any], given: dict[str, Any], default_name: str) -> SweepSpec:
    if not record.get("tasks") or not record.get("methods"):
        raise RequestError(f"Recipe {default_name} needs tasks and methods; dlmbench show reproduce is an example.")
    tune_on = given.pop("tune_on", None) or record.get("tune_on")
    given = {name: value for name, value in given.items() if value is not None}
    _refuse_unknown(given)
    common = {name: value for name, value in record.items() if name not in _RECIPE_KEYS}
    tasks = _chosen(record["tasks"], "task", given.pop("task", None))
    methods = _chosen(record["methods"], "method", given.pop("method", None))
    _refuse_strangers(given.get("set"), [entry["method"] for entry in methods])
    cells: list[RunSpec] = []
    for task, method in itertools.product(tasks, methods):
        cells.extend(_expand(common, task, method, given))
    return SweepSpec(
        str(record.get("name", default_name)),
        tuple(cells),
        cells[0].out if cells else "runs",
        tune_on,
        str(record.get("description", "")),
    )


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in (*FIELDS, "set"):
            raise RequestError(_unknown_key(name))


def _refuse_strangers(assignments: Sequence[str] | None, methods: list[str]) -> None:
    for owner in options.parse_assignments(assignments or ()):
        if owner not in (*methods, *OWNERS):
            raise RequestError(
                f"--set names {owner}, which is not a method of this sweep ({', '.join(methods)}); add it to --method."
            )


def _unknown_key(name: str) -> str:
    known = (*FIELDS, "set", *_RECIPE_KEYS)
    near = difflib.get_close_matches(name, known, n=1)
    return f"Unknown option {name!r}: " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}.")


def _chosen(entries: Any, key: str, wanted: Any) -> list[dict[str, Any]]:
    """Entries of a recipe's list as mappings; a flag of the same name keeps those it lists."""
    result = []
    for entry in entries if isinstance(entries, list) else [entries]:
        mapping = dict(entry) if isinstance(entry, Mapping) else {key: entry}
        if key not in mapping:
            raise RequestError(f"An entry of {key}s has no {key}: {mapping!r}.")
        result.append(mapping)
    if wanted is None:
        return result
    names = options.parse_values(wanted)
    missing = [name for name in names if name not in [entry[key] for entry in result]]
    if missing:
        raise RequestError(f"The recipe has no {key} {missing[0]!r}; it has {', '.join(e[key] for e in result)}.")
    return [entry for entry in result if entry[key] in names]


def _expand(
    common: Mapping[str, Any], task: Mapping[str, Any], method: Mapping[str, Any], given: Mapping[str, Any]
) -> Iterable[RunSpec]:
    """All combinations of the lists and ranges in the merged options; later mappings win."""
    merged: dict[str, Any] = {}
    axes: dict[tuple[str, str], list[Any]] = {}  # (owner, option) -> values; owner "" is an option of the run itself
    for layer in (common, task, method, given):
        for name, value in layer.items():
            if name == "set":
                axes.update(_set_axes(value, method["method"]))
            elif name not in FIELDS:
                raise RequestError(_unknown_key(name))
            else:
                merged[name] = value
    for name, value in merged.items():
        if name not in SINGLE and value is not None:
            axes[("", name)] = options.parse_values(value)
    single = {name: merged[name] for name in SINGLE if name in merged}
    # a value that stands alone needs no axis; the product runs over methods' options last, so they vary fastest
    ordered = sorted(axes, key=lambda axis: (axis[0] != "", axis[1] == "threshold"))
    for combination in itertools.product(*(axes[axis] for axis in ordered)):
        plain, settings = dict(single), {}
        for (owner, name), value in zip(ordered, combination):
            if owner:
                settings.setdefault(owner, {})[name] = value
            else:
                plain[name] = value
        yield RunSpec(**{**plain, "settings": settings})


def _set_axes(value: Any, method: str) -> dict[tuple[str, str], list[Any]]:
    """``set`` of a recipe ({option: values} of the entry's method, or {method.option: values}), or of flags."""
    if not isinstance(value, Mapping):
        value = {
            f"{owner}.{name}": one
            for owner, inner in options.parse_assignments(value).items()
            for name, one in inner.items()
        }
    found = {}
    for name, values in value.items():
        owner, dot, option = str(name).rpartition(".")
        if not dot or owner == method or owner in OWNERS:  # other methods' options belong to their own entries
            found[(owner if dot else method, option if dot else str(name))] = options.parse_values(values)
    return found


def _with_baselines(cells: Sequence[RunSpec]) -> list[RunSpec]:
    """Add the methods of ``against`` to every group of items and weights that lacks them.

    The threshold baseline runs at every confidence that a method of its group runs at, so that it gets as many
    settings; values of other knobs mean nothing to it, and it runs at its default beside them.
    """
    groups: dict[str, list[RunSpec]] = {}
    for cell in cells:
        same = replace(cell, method="any", threshold=None, settings=cell.shared_settings, **dict.fromkeys(HELPERS))
        groups.setdefault(json.dumps(dataclasses.asdict(same), sort_keys=True), []).append(cell)
    result: list[RunSpec] = []
    for group in groups.values():
        added = []
        for name in group[0].against if attention_of(group[0].model) != "causal" else ():
            if name in [cell.method for cell in group]:
                continue
            given = [cell for cell in group if cell.threshold is not None] if name == "threshold" else []
            tried = [cell.threshold for cell in given if _knob_is_confidence(cell)]
            thresholds = list(dict.fromkeys(tried)) or [None]
            shared = group[0].shared_settings
            added += [replace(group[0], method=name, threshold=one, settings=shared) for one in thresholds]
        result += added + group
    return result


# --- the key --------------------------------------------------------------------------------------------------------


def canonical(record: Any) -> str:
    """JSON with sorted keys and no spaces: equal records give equal strings."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(record: Any) -> str:
    """sha256 of the canonical JSON, hexadecimal."""
    return hashlib.sha256(canonical(record).encode()).hexdigest()


def identity(
    checked: Checked, weights: Mapping[str, str], prompts: str, limits: Mapping[str, Any], content: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides what a run produces; `digest` of it is the run's key.

    weights: role -> hash; prompts: hash of the items' keys and prompts, in order; limits: generation limits and stops;
    content: what else reads and judges the items (the task's version, the hash of its data, that of the tokenizer).
    `checked.spec` must be resolved. The batch size is part of it although ids do not depend on it (within the
    identity rule), because the row's speed and cost do, and a sweep over batch sizes needs one row for each.
    """
    spec = checked.spec
    record = {
        "weights": dict(weights),
        "method": spec.method,
        "version": checked.version,
        "parameters": checked.parameters,
        "task": spec.task,
        "split": spec.split,
        "prompts": prompts,
        "limits": dict(limits),
        "content": dict(content),
        "block_length": checked.block_length,
        "cache": spec.cache,
        "store": spec.store,
        "sampling": {"temperature": spec.temperature, "top_k": spec.top_k, "top_p": spec.top_p},
        "dtype": spec.dtype,
        "device": spec.device.partition(":")[0],
        "batch_size": spec.batch_size,
        "seed": spec.seed,
    }
    chosen = {**checked.axes.chosen(), "eos": checked.eos, "fixed": checked.fixed}
    shared = {name: value for name, value in chosen.items() if value not in ("free", None)}
    return {**record, "shared": shared} if shared else record
