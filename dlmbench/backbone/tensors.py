"""The tensors of a checkpoint folder, by their official names. Headers are judged before a single tensor is read.

What cannot be loaded rightly is refused: tensors that are missing or of another shape, quantised ones, and those that
no part of the network would read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from dlmbench.errors import RequestError
from dlmbench.files import INDEX, broken, model_name, read_json, tensor_entries, weight_files

PLAIN = ("F64", "F32", "F16", "BF16")
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
        self.entries: dict[str, dict] = {}
        files = weight_files(folder)
        index = (read_json(folder / INDEX) or {}).get("weight_map", {}) if files[0].name != "model.safetensors" else {}
        for file in files:
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
        row = 0
        for name in names:
            part = self.get(name)
            whole[row : row + len(part)].copy_(part)
            row += len(part)
            del part
        return whole

    def shape(self, names: Sequence[str]) -> tuple[int, ...]:
        """Shape of tensors one below the other. Raises RequestError when they cannot lie so."""
        shapes = [self.entries[name]["shape"] for name in names]
        if not all(shapes) or len({tuple(shape[1:]) for shape in shapes}) > 1:
            raise RequestError(f"{self.name}: tensors {', '.join(names)} have the shapes {shapes}; they do not belong "
                               "together, fetch the checkpoint again.")  # fmt: skip
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

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
        if any(".experts." in name or ".expert" in name for name in self.place):
            return "its layers are mixtures of experts, which are not supported: take a dense checkpoint"
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
