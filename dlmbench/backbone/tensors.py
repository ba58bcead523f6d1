"""The tensors of a checkpoint folder, by their official names. Headers are judged before a single tensor is read.

What cannot be loaded rightly is refused: tensors that are missing or of another shape, quantised ones, and those that
no part of the network would read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from dlmbench.errors import RequestError
from dlmbench.files import (
    INDEX,
    TensorEntry,
    broken,
    has_weights,
    model_name,
    read_json,
    tensor_entries,
    weight_files,
)

PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
HARMLESS = re.compile(  # tables that are computed anew, and modules that are loaded as heads
    r"(?:.*\.)?rotary(?:_pos)?_emb\..+|.*\.masked_bias|m[rt]p_modules\..+"
)
QUANTISED = {  # how the names of a layout's tensors end -> the method
    ".g_idx": "gptq",
    ".qzeros": "awq or gptq",
    ".qweight": "awq or gptq",
    ".weight_scale_inv": "fp8",
    ".quant_map": "bitsandbytes",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "fp8 or int8",
}
REMEDY = "take the checkpoint that it was made from, in bfloat16, float16 or float32"


class Tensors:
    """Tensors of a folder by name, whichever of its files they are in."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder, model_name(folder)
        self.place: dict[str, Path] = {}
        self.entries: dict[str, TensorEntry] = {}
        files = weight_files(folder)
        index = (read_json(folder / INDEX) or {}).get("weight_map", {}) if files[0].name != "model.safetensors" else {}
        self._begin: dict[Path, int] = {}  # where the tensors of a file begin, behind its header
        for file in files:
            with file.open("rb") as stream:
                self._begin[file] = 8 + int.from_bytes(stream.read(8), "little")
            for name, entry in tensor_entries(file).items():
                if index.get(name, file.name) != file.name:
                    continue
                if name in self.place:
                    raise broken(file, f"and {self.place[name].name} both hold {name}: remove the one that is old")
                self.place[name], self.entries[name] = file, entry

    def get(self, name: str) -> torch.Tensor:
        """One tensor; on the CPU it is a view of the file, which is unmapped with it."""
        if name not in self.place:
            raise RequestError(f"{self.name}: tensor {name} is missing; the download may be incomplete.")
        with safe_open(self.place[name], framework="pt") as handle:
            return handle.get_tensor(name)

    def joined(self, names: Sequence[str], device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
        """Tensors one below the other, converted; each part is dropped before the next one is read."""
        if len(names) == 1:
            return self.get(names[0]).to(device=device, dtype=dtype)
        whole = torch.empty(self.shape(names), device=device, dtype=dtype)
        dim, row = _below(whole.shape), 0
        for name in names:
            part = self._read(name)
            whole.narrow(dim, row, part.shape[dim]).copy_(part)
            row += part.shape[dim]
            del part
        return whole

    def _read(self, name: str) -> torch.Tensor:
        """A copy of one tensor in memory of its own. Its file is not mapped: that takes milliseconds where a header
        names thousands of tensors, as those of experts do."""
        entry = self.entries[name]
        first, end = entry["data_offsets"]
        raw = np.fromfile(self.place[name], np.uint8, end - first, offset=self._begin[self.place[name]] + first)
        return torch.from_numpy(raw).view(PLAIN[entry["dtype"]]).view(entry["shape"])

    def shape(self, names: Sequence[str]) -> tuple[int, ...]:
        """Shape of tensors one below the other, in each member of a stack. Raises RequestError when they cannot lie
        so."""
        shapes = [tuple(self.entries[name]["shape"]) for name in names]
        dim = _below(shapes[0])
        rest = {shape[:dim] + shape[dim + 1 :] for shape in shapes}
        if not all(shapes) or len(rest) > 1:
            raise RequestError(f"{self.name}: tensors {', '.join(names[:4])} have the shapes {shapes[:4]}; they do not "
                               "belong together, fetch the checkpoint again.")  # fmt: skip
        return (*shapes[0][:dim], sum(shape[dim] for shape in shapes), *shapes[0][dim + 1 :])

    def rows(self, names: Sequence[str]) -> list[int]:
        """How many rows each of these tensors has."""
        shapes = [self.entries[name]["shape"] for name in names]
        return [shape[_below(shape)] for shape in shapes]

    def check(self, wanted: Iterable[str], layers: int, prefix: str = "", ignored: Iterable[str] = ()) -> None:
        """Refuse a folder without one of the tensors `wanted`, with quantised ones, or with others below `prefix` that
        would not be read, other than those `ignored`."""
        wanted = set(wanted)
        self.check_plain(wanted)
        if missing := sorted(wanted - self.place.keys()):
            raise RequestError(f"{self.name}: tensor {missing[0]} is missing; {self._instead(missing[0], layers)}.")
        left = self.place.keys() - wanted - set(ignored)
        unread = sorted(name for name in left if name.startswith(prefix) and (prefix or not HARMLESS.fullmatch(name)))
        if unread:
            more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
            raise RequestError(
                f"{self.name} holds tensors that this architecture does not have ({', '.join(unread[:3])}{more}), so "
                "it would compute something else: take a checkpoint of a supported architecture, or merge adapters "
                "into the weights first."
            )

    def check_plain(self, wanted: Iterable[str]) -> None:
        """Refuse tensors whose stored values are not the weights."""
        for end, method in QUANTISED.items():
            if found := next((name for name in self.place if name.endswith(end)), None):
                raise RequestError(
                    f"{self.name} is quantised with {method} (it has {found}), which is not supported: {REMEDY}."
                )
        for name in sorted(self.place.keys() & set(wanted)):
            if self.entries[name]["dtype"] not in PLAIN:
                raise RequestError(
                    f"{self.name} is quantised: {name} is stored as {self.entries[name]['dtype']}, which is not "
                    f"supported: {REMEDY}."
                )

    def _instead(self, missing: str, layers: int) -> str:
        """What the files hold where `missing` should be."""
        if experts := [name for name in self.place if ".expert" in name]:
            if ".experts." not in missing:
                return "its layers are mixtures of experts and its config.json is that of a dense network"
            if not any(re.search(r"\.experts\.\d+\.", name) for name in experts):
                return (
                    f"experts are stored under names that are not known ({min(experts)}): one tensor an expert is "
                    "read, or stacks called gate_proj, up_proj and down_proj, or gate_up_proj and down_proj"
                )
        ends = Counter(name[: -len(missing)] for name in self.place if name.endswith(missing))
        if ends and (prefix := ends.most_common(1)[0][0]):
            return f"its names begin with {prefix!r}: save it without that prefix"
        if any(missing.endswith("." + name) for name in self.place):
            prefix = next(missing.removesuffix(name) for name in self.place if missing.endswith("." + name))
            return f"its names lack the beginning {prefix!r}: save the whole model, head included"
        own = (name for name in self.place if not HARMLESS.fullmatch(name))
        numbers = {found[1] for name in own if (found := re.search(r"\.(?:layers|blocks)\.(\d+)\.", name))}
        if numbers and len(numbers) < layers:
            return f"config.json says {layers} layers and the files hold {len(numbers)}; the download may be incomplete"
        return "the download may be incomplete, or config.json belongs to another checkpoint"


def tensor_names(folder: Path) -> set[str] | None:
    """Official names of a folder's tensors, by its index, which may be here without weights, or by their headers."""
    index = read_json(folder / INDEX)
    if index is not None and isinstance(index.get("weight_map"), dict):
        return set(index["weight_map"])
    return set(Tensors(folder).place) if has_weights(folder) else None


def _below(shape: Sequence[int]) -> int:
    """The axis of rows: the first one of a matrix or vector, the second of a stack of matrices."""
    return max(len(shape) - 2, 0)
