"""What a list of runs needs on this machine, and whether it is here: weights, data, extras, device, memory, disk.

Looks without fetching: weights are looked for in folders and in the hub's cache, data are loaded (the hub's client may
fetch a data set, which is small). Sizes of weights that are not here are known for the shapes that `bench` knows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dlmbench.backbone.configuration import read_config
from dlmbench.errors import RequestError, UnknownName
from dlmbench.files import weight_files
from dlmbench.models.presets import Preset, resolve
from dlmbench.models.shapes import SHAPES
from dlmbench.request import ResolvedRun
from dlmbench.request.resolved import Machine
from dlmbench.scoring import capabilities
from dlmbench.tasks import data, load_task

if TYPE_CHECKING:
    from dlmbench.backbone.config import BackboneConfig
    from dlmbench.backbone.descriptor import Descriptor

GIB = 1 << 30
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_LETTERS_A_TOKEN = 3  # how a prompt's tokens are guessed before its tokenizer is loaded
_LOGITS = 3  # copies of a block's float32 logits that a decision keeps
_HEAD_LAYERS = 3  # of the largest trained head (MRP's)


class Need(NamedTuple):
    """One thing that is needed: state is "ok", "limited" (works, worse) or "missing"."""

    what: str
    state: str
    detail: str


class Needs:
    """Looks each thing up once."""

    def __init__(self):
        self._weights: dict[tuple[str, Descriptor, bool], Need] = {}
        self._tasks: dict[str, tuple[Any, Need]] = {}

    def of(self, run: ResolvedRun) -> list[Need]:
        """Everything that this run needs, in the order in which one would get it."""
        needs = list(dict.fromkeys(self._weights_of(preset, role == "head") for role, preset in networks(run).items()))
        needs.append(self.task(run)[1])
        needs.append(_device(run))
        if needs[-1].state == "ok":
            needs.append(self._memory(run))
        return needs

    def missing(self, run: ResolvedRun) -> list[Need]:
        """What is not here and keeps the run from being made."""
        return [need for need in self.of(run) if need.state == "missing"]

    def task(self, run: ResolvedRun) -> tuple[Any, Need]:
        """The run's task without chat markup (None when it cannot be had), and what is to be said about its data."""
        spec = run.spec
        name = json.dumps([spec.task, spec.data_dir, spec.protocol, spec.num_fewshot, run.gen_length])
        if name not in self._tasks:
            self._tasks[name] = _load(run)
        return self._tasks[name]

    def items(self, run: ResolvedRun) -> int | None:
        """Number of items that the run asks for, None when its data are not here."""
        task = self.task(run)[0]
        if task is None:
            return None
        size = task.size(run.spec.split)
        return size if run.spec.limit is None else min(run.spec.limit, size)

    def _weights_of(self, preset: Preset, head: bool) -> Need:
        key = (preset.location, preset.flags, head)
        if key not in self._weights:
            self._weights[key] = weights_need(preset, head)
        return self._weights[key]

    def _memory(self, run: ResolvedRun) -> Need:
        task = self.task(run)[0]
        need = memory_bytes(run, task)
        room, where = _room(run.device), f"memory for {run.preset.name}"
        if need is None or room is None:
            return Need(where, "ok", "not known before the weights are here")
        state = "ok" if need <= room else "missing"
        remedy = "" if state == "ok" else ": lower --batch-size, or take a smaller model"
        return Need(where, state, f"about {need / GIB:.2g} GiB of {room / GIB:.3g} GiB that are free{remedy}")


def disk(out: str, results: float) -> Need:
    """Room for `results` bytes of run folders below `out`."""
    place = next(folder for folder in (Path(out).absolute(), *Path(out).absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    wanted = f"about {results / 1e6:.3g} MB of results, " if results else ""
    return Need("disk", "ok" if results < free else "missing", f"{wanted}{free / 1e9:.3g} GB free")


def worst(needs: Iterable[Need]) -> list[Need]:
    """Each thing once, in order; of several verdicts on one thing the worst."""
    rank = ("ok", "limited", "missing")
    found: dict[str, Need] = {}
    for need in needs:
        if need.what not in found or rank.index(need.state) > rank.index(found[need.what].state):
            found[need.what] = need
    return list(found.values())


def checkpoint_here(preset: Preset) -> Path | None:
    """Folder of a checkpoint with all its weight files, in place or in the hub's cache; None when it is not here."""
    folder = Path(preset.location).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(preset.source, revision=preset.revision, local_files_only=True))
        except Exception:  # whatever the hub's client calls it: it is not here
            return None
    try:
        weight_files(folder)
    except RequestError:
        return None
    return folder


def networks(run: ResolvedRun) -> dict[str, Preset]:
    """Role -> the model in it, the target as the run's flags use it."""
    return {"target": run.preset, **{role: resolve(name) for role, name in run.companions.items()}}


def memory_bytes(run: ResolvedRun, task: Any) -> int | None:
    """Weights, keys and values and logits of all networks of a run, None when a configuration is not here."""
    spec = run.spec
    answer = run.gen_length or getattr(task, "max_tokens", 0)
    prompt = 0
    if task is not None:
        few = task.items(spec.split, min(spec.limit or 16, 16))
        prompt = max(len(item.prompt) for item in few) // _LETTERS_A_TOKEN
    total = 0
    for role, preset in networks(run).items():
        config = config_of_checkpoint(run.preset if role == "head" else preset)
        if config is None:
            return None
        if role == "head":  # a few layers of its target's shape, without an embedding of its own
            config = replace(config, num_layers=_HEAD_LAYERS, vocab_size=0)
        seen = prompt + (answer or 0) + run.block_length
        keys = 2 * config.num_layers * config.num_kv_heads * config.head_dim * seen
        logits = _LOGITS * 4 * run.block_length * config.vocab_size
        width = _BYTES[run.dtype]
        total += config.parameters * width + run.batch_size * (keys * width + logits)
    return total


def fitting_batch(run: ResolvedRun, task: Any, room: int, most: int = 256) -> int:
    """The most rows, a power of two, that `memory_bytes` says fit into four fifths of `room` bytes; 16 when the model's
    configuration is not here."""
    size = most
    while size > 1:
        need = memory_bytes(replace(run, batch_size=size), task)
        if need is None:
            return 16
        if need <= 0.8 * room:
            return size
        size //= 2
    return 1


def config_of_checkpoint(preset: Preset) -> BackboneConfig | None:
    """Backbone configuration of a checkpoint: a preset's known shape, so that what follows from it is the same before
    and after a download; else by its config.json, which the hub's client may fetch; None when neither can be had."""
    if preset.shape and not Path(preset.location).expanduser().is_dir():
        return SHAPES[preset.shape]
    folder = config_folder(preset)
    try:
        return read_config(folder, preset.told)[0] if folder else None
    except RequestError:  # loading says what is wrong with it
        return None


def config_folder(preset: Preset) -> Path | None:
    """Where the config.json of a checkpoint is: a folder, or the hub's cache, into which it may be fetched."""
    folder = Path(preset.location).expanduser()
    return folder if folder.is_dir() else _fetched_config(preset)


def _fetched_config(preset: Preset) -> Path | None:
    """Folder with the config.json of a hub checkpoint: the cache's, else fetched where the hub answers."""
    from huggingface_hub import hf_hub_download

    here = checkpoint_here(preset) is not None or not data._hub_answers()
    try:
        return Path(
            hf_hub_download(preset.source, "config.json", revision=preset.revision, local_files_only=here)
        ).parent
    except Exception:  # whatever the hub's client calls it: it cannot be had
        return None


def weights_need(preset: Preset, head: bool = False) -> Need:
    """The weights of a model, and where they are to be had."""
    from dlmbench.backbone.loading import check_checkpoint

    try:
        folder = checkpoint_here(preset)
        if folder and not head:
            check_checkpoint(folder, preset.told)
    except RequestError as error:
        return Need(f"weights of {preset.name}", "missing", str(error))
    what = f"weights of {preset.name}"
    if folder:
        found = sum(file.stat().st_size for file in weight_files(folder))
        return Need(what, "ok", f"{found / 1e9:.3g} GB" if found > 1e8 else f"{found / 1e6:.3g} MB")
    config = config_of_checkpoint(preset)
    size = f", about {2 * config.parameters / 1e9:.3g} GB" if config else ""
    return Need(
        what,
        "missing",
        f"{preset.source}{size} is neither a folder here nor in the hub's cache: a run fetches it from the hub, "
        "or give its folder with --model",
    )


def _load(run: ResolvedRun) -> tuple[Any, Need]:
    spec, what = run.spec, f"data of {run.spec.task}"
    try:
        task = load_task(
            spec.task,
            data_dir=spec.data_dir,
            num_fewshot=spec.num_fewshot,
            gen_length=run.gen_length,
            protocol=spec.protocol,
        )
        task.size(spec.split)
    except UnknownName:
        raise
    except RequestError as error:
        return None, Need(what, "missing", str(error))
    if task.is_code:
        (wall, (holds, remark)), *_ = capabilities().items()
        if not holds:
            return task, Need(f"{wall} for {spec.task}", "missing", remark)
    return task, Need(what, "ok", f"{task.size(spec.split)} {spec.split} items")


def _device(run: ResolvedRun) -> Need:
    try:
        return Need("device", "ok", Machine().device(run.device))
    except RequestError as error:
        return Need("device", "missing", str(error))


def _room(device: str) -> int | None:
    """Free bytes of the memory that a device works in."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def needed_by(runs: Sequence[ResolvedRun], needs: Needs) -> list[Need]:
    """Everything that some runs need, each thing once."""
    return worst(need for run in runs for need in needs.of(run))
