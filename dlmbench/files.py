"""The files of a checkpoint folder: which ones are read, and one clear sentence for whatever is wrong with one.

Imports nothing heavy, so that configurations can be looked at long before a weight is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from dlmbench.errors import RequestError

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"
JsonObject = dict[str, Any]  # a file of somebody else's; whoever reads a field of it checks it
TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template")  # how names begin
CONFIGS = ("config.json", "generation_config.json")
INDEX = "model.safetensors.index.json"
PACKED = "model.safetensors.z"  # how the shipped models are kept, by `pack`
LARGE = 1 << 28  # bytes: from here on, waiting is announced and a file's hash is remembered
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_DAMAGED = "is cut off or damaged: fetch it again"
_seen: dict[str, list] = {}  # hashes found by this process, as they are remembered
_BLOB = re.compile(r"[0-9a-f]{64}")
_FRESH = 2.0  # seconds after its last change in which a file may change again without a new time stamp


class TensorEntry(TypedDict):
    """What a safetensors header says of one tensor."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]  # first byte behind the header, and the one behind the last


def tell(text: str) -> None:
    """One line on stderr about something that takes long."""
    print(text, file=sys.stderr, flush=True)


def yaml_mapping(path: Path, what: str) -> dict[str, Any]:
    """A YAML file's options by name; numbers with colons, which YAML takes to the base of 60, stay the ranges they are.

    Raises RequestError, naming `what` it is, for invalid YAML and for anything but a mapping.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Keeps ``1:4`` as it is written."""

    def number(loader: Loader, node: yaml.ScalarNode) -> int | float | str:
        if ":" in node.value:
            return node.value
        whole = node.tag.endswith(":int")
        return loader.construct_yaml_int(node) if whole else loader.construct_yaml_float(node)

    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", number)
    try:
        found = yaml.load(path.read_text(encoding="utf-8-sig"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{what} {path.name} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(found, dict):
        raise RequestError(f"{what} {path.name} must be a mapping of options.")
    return found


def model_name(folder: Path) -> str:
    """What a user calls a checkpoint folder: owner/model for a snapshot in the hub's cache, else the folder's name."""
    folder = Path(folder)
    cache = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cache.startswith("models--"):
        return cache.removeprefix("models--").replace("--", "/")
    return folder.name or str(folder)


def broken(file: Path, what: str) -> RequestError:
    """The error about a file: whose it is, its name, and `what` with the remedy."""
    return RequestError(f"{model_name(file.parent)}: {file.name} {what}.")


def no_file(start: bytes) -> str | None:
    """What stands in a file's place when it begins like this: nothing, a git-lfs pointer or a web page."""
    if not start:
        return "is empty: fetch it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer and not the file itself: run git lfs pull in the checkpoint's folder"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page and not the file itself: the download went wrong, fetch it again"
    return None


def read_json(file: Path) -> JsonObject | None:
    """The object in a JSON file of a checkpoint, None when there is no such file. Raises RequestError."""
    if not file.is_file():
        return None
    data = file.read_bytes()
    if fault := no_file(data[:200]):
        raise broken(file, fault)
    try:
        record = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise broken(file, "is not UTF-8: save it in that encoding, or fetch it again") from error
    except (ValueError, RecursionError) as error:
        raise broken(file, f"is no JSON ({str(error)[:80]}); it may be cut off: fetch it again") from error
    if not isinstance(record, dict):
        raise broken(file, f"holds a {type(record).__name__} where a JSON object belongs: fetch it again")
    return record


# --- safetensors ------------------------------------------------------------------------------------------------------


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that belong together, as transformers chooses: model.safetensors, else what the index
    names, else the only set there is. Files left over from other uploads are not among them. A network without layers
    (an oracle) has none.

    Raises RequestError when there are none, when a shard is missing, and when it is not clear which ones are meant.
    """
    whole, index, packed = folder / "model.safetensors", folder / INDEX, folder / PACKED
    if whole.is_file():
        return [whole]
    if packed.is_file():
        return [unpacked(packed)]
    if (record := read_json(index)) is not None:
        names = record.get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise broken(index, "has no weight_map from tensors to files: fetch it again")
        return _all_there(folder, sorted(set(names.values())))
    found = sorted(file.name for file in folder.glob("*.safetensors") if not file.name.startswith("adapter_"))
    if not found and (read_json(folder / "config.json") or {}).get("num_hidden_layers") == 0:
        return []
    if not found:
        adapter = any(folder.glob("adapter_*.safetensors"))
        remedy = "merge its adapter into the base model first" if adapter else "convert the checkpoint to it first"
        raise RequestError(f"Model folder {model_name(folder)!r} has no .safetensors file of weights; {remedy}.")
    sets = {(m[1], m[3]) for m in map(_SHARD.fullmatch, found) if m}
    if len(sets) > 1:
        raise RequestError(
            f"{model_name(folder)} has {len(sets)} sets of shards and no {INDEX} that says which one is meant: fetch "
            "the index, or remove the files of the other upload."
        )
    if sets and all(_SHARD.fullmatch(name) for name in found):
        ((stem, total),) = sets
        width = len(total)
        return _all_there(folder, [f"{stem}-{i:0{width}}-of-{total}.safetensors" for i in range(1, int(total) + 1)])
    return [folder / name for name in found]


def _all_there(folder: Path, names: list[str]) -> list[Path]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise RequestError(
            f"{model_name(folder)}: {missing[0]} is missing, {len(names) - len(missing)} of its {len(names)} weight "
            "files are here; the download is incomplete: fetch it again."
        )
    return [folder / name for name in names]


def has_weights(folder: Path) -> bool:
    """Does a folder hold a file of weights, whole or packed?"""
    return (folder / PACKED).is_file() or any(folder.glob("*.safetensors"))


def pack(file: Path) -> Path:
    """Pack a model.safetensors of 16-bit numbers to 70 % of its size, in its place; the packed file.

    Deflated, with the two bytes of every number apart: exponents repeat, mantissas do not.
    """
    raw = file.read_bytes()
    packed = file.with_name(PACKED)
    packed.write_bytes(zlib.compress(raw[::2] + raw[1::2], 9))
    file.unlink()
    return packed


def unpacked(packed: Path) -> Path:
    """The file that was packed, bit for bit: written once into the user's cache, or for this process where that cannot
    be written. Raises RequestError for a damaged file."""
    data = packed.read_bytes()
    own = Path("weights", hashlib.sha256(data).hexdigest()[:16], packed.parent.name, "model.safetensors")
    place = _cache() / own
    if os.path.isfile(place):  # unlike Path's it takes a folder that cannot be read for one without the file
        return place
    try:
        apart = zlib.decompress(data)
    except zlib.error as error:
        raise broken(packed, _DAMAGED) from error
    raw, half = bytearray(len(apart)), -(-len(apart) // 2)
    raw[::2], raw[1::2] = apart[:half], apart[half:]
    try:
        return _written(place, raw)
    except OSError:
        return _written(Path(_for_this_process().name, own), raw)


def _written(place: Path, raw: bytes | bytearray) -> Path:
    """Write a file, all of it or nothing."""
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_suffix(f".{os.getpid()}")
    draft.write_bytes(raw)
    draft.replace(place)
    return place


@cache
def _for_this_process() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="dlmbench-")


def tensor_entries(file: Path) -> dict[str, TensorEntry]:
    """The header of a safetensors file: tensor name -> entry.

    Raises RequestError for a file that is none, or that is shorter than its header says.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        text = stream.read(length if 8 + length <= size else 200)
    if fault := no_file(start + text[:200]):
        raise broken(file, fault)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise broken(file, _DAMAGED) from error
    if 8 + length + end > size:
        raise broken(file, f"is cut off ({size} of {8 + length + end} bytes are here): fetch it again")
    return entries


def file_dtype(folder: Path) -> str | None:
    """How a checkpoint stores its weights ("bfloat16"; several joined by +), None when it has none."""
    try:
        kinds = {entry["dtype"] for file in weight_files(folder) for entry in tensor_entries(file).values()}
    except RequestError:
        return None
    return "+".join(sorted(_DTYPES.get(kind, kind) for kind in kinds))


# --- hashes -----------------------------------------------------------------------------------------------------------


def checkpoint_hash(folder: Path) -> str:
    """Short hash of everything in a folder that decides what its network computes: weights, and both configurations."""
    return files_hash(network_files(folder))


def weights_hash(folder: Path) -> str:
    """Short hash of the weights alone, which a head that was trained beside them remembers."""
    return files_hash(weight_files(folder))


def files_hash(paths: Iterable[Path]) -> str:
    """Short hash of some files' names and contents."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.name} {_sha256(path)}\n".encode())
    return total.hexdigest()[:16]


def network_files(folder: Path) -> list[Path]:
    """The files that decide what a folder's network computes: weights, and both configurations."""
    return [*weight_files(folder), *(folder / name for name in CONFIGS if (folder / name).is_file())]


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that a folder's tokenizer may be made from."""
    return sorted(file for file in folder.iterdir() if file.name.startswith(TOKENIZER_FILES) and file.is_file())


def stamps(files: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of files: while they are equal, what was loaded from the files is still right."""
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def _sha256(file: Path) -> str:
    """sha256 of a file's bytes, without reading them where it is known: the hub's cache names large files by it, and
    those that were hashed before are remembered for as long as size and times of change stay the same."""
    real = file.resolve()
    if real.parent.name == "blobs" and real.parent.parent.name.startswith("models--") and _BLOB.fullmatch(real.name):
        return real.name
    state = real.stat()
    if state.st_size < LARGE:
        return _digest(real)
    stamp = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    place = hashlib.sha256(str(real).encode()).hexdigest()
    known = _seen.get(place) or _remembered().get(place)
    if isinstance(known, list) and known[:-1] == stamp:
        return known[-1]
    tell(f"reading {state.st_size / 1e9:.1f} GB of {model_name(file.parent)} for its hash ({file.name}, once)")
    found = _digest(real)
    _seen[place] = [*stamp, found]
    if time.time() - max(state.st_mtime, state.st_ctime) > _FRESH:
        _remember(place, _seen[place])
    return found


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _cache() -> Path:
    """The user's folder for what can be made again. Without a home it is one of this process."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlmbench"
    except RuntimeError:
        return Path(_for_this_process().name)


def _memory() -> Path:
    return _cache() / "hashes.json"


def _remembered() -> JsonObject:
    try:
        record = json.loads(_memory().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, not readable
        return {}
    return record if isinstance(record, dict) else {}


def _remember(place: str, entry: list) -> None:
    """Keep a hash for the next process; a cache that cannot be written is done without."""
    try:
        _written(_memory(), json.dumps({**_remembered(), place: entry}).encode())
    except OSError:
        pass
