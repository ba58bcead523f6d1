"""One folder a run: manifest.json, samples.jsonl, traces.jsonl, metrics.json.

samples.jsonl is appended and flushed item by item, so a killed run loses at most the items in flight. A line that was
cut by the kill is removed when the run goes on; manifest and metrics are replaced whole, never half written. An
advisory lock keeps a second writer out and dies with its process. metrics.json is written last: it marks a run as
finished.

Left out: locking on network file systems without flock, and recovery from damage that is not a torn last line.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dlmbench.errors import RunError

FORMAT = 1
_KEY_LETTERS = 8


def prompt_hash(prompt: str) -> str:
    """Short hash of a prompt's text, one per sample."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


class RunFolder:
    """The files of one run. Open with `RunFolder.at`; write only inside `writing`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @classmethod
    def at(cls, root: str | Path, task: str, method: str, key: str) -> RunFolder:
        """The folder of the run with this key below `root`: the one that exists, or the one it will get."""
        stem = f"{_plain(task)}-{_plain(method)}-"
        for letters in (_KEY_LETTERS, len(key)):  # a longer name only when eight letters are taken by another key
            folder = cls(Path(root) / (stem + key[:letters]))
            if folder.key in (None, key):
                return folder
        raise RunError(f"Folder {folder.path.name} holds another run; remove it or choose another --out.")

    # --- reading ---

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def key(self) -> str | None:
        return self.manifest().get("key")

    @property
    def finished(self) -> bool:
        return bool(self.manifest() and self.metrics())

    def manifest(self) -> dict[str, Any]:
        """The manifest, empty when there is none yet or the file is not a run's."""
        return self._read("manifest.json")

    def metrics(self) -> dict[str, Any]:
        """The aggregates, empty while the run is unfinished or when they cannot be read."""
        return self._read("metrics.json")

    def samples(self) -> list[dict[str, Any]]:
        """All complete lines, in the order in which items finished; a torn last line is left out.

        Raises RunError for a damaged line anywhere else, and for an item that stands there twice.
        """
        records: list[dict[str, Any]] = []
        data = self._samples_path.read_bytes() if self._samples_path.is_file() else b""
        for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise RunError(
                    f"Line {number} of {self.name}/samples.jsonl is damaged; remove the folder and run again."
                ) from error
        keys = [record["key"] for record in records]
        if len(set(keys)) != len(keys):
            raise RunError(f"{self.name}/samples.jsonl holds an item twice; remove the folder and run again.")
        return records

    def traces(self) -> list[dict[str, Any]]:
        """Recorded steps of the first items, see `dlmbench.runs.recording`; empty when none were recorded or the file
        is damaged: then they are recorded again."""
        path = self.path / "traces.jsonl"
        try:
            return [json.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []
        except ValueError:
            self._pass_over("traces.jsonl")
            return []

    def _read(self, name: str) -> dict[str, Any]:
        """A file's record; empty for one that is missing, cut short by a crash, or somebody else's."""
        path = self.path / name
        try:
            record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError:
            record = None
        if not isinstance(record, dict) or (name == "manifest.json" and record and "format" not in record):
            self._pass_over(name)
            return {}
        return record

    def _pass_over(self, name: str) -> None:
        warnings.warn(f"{self.name}/{name} is not a run's file and is passed over.", RuntimeWarning, stacklevel=3)

    @property
    def _samples_path(self) -> Path:
        return self.path / "samples.jsonl"

    # --- writing ---

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writer]:
        """Exclusive right to write; repairs a torn last line first. Raises RunError when somebody else writes."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / ".lock"
        with self._locked(lock):
            self._drop_torn_line()
            try:
                with open(self._samples_path, "a", encoding="utf-8") as stream:
                    yield Writer(self, stream)
            finally:
                lock.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, lock: Path) -> Iterator[None]:
        while True:
            descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise RunError(f"Another process writes {self.name}; wait for it, or choose another --out.") from None
            # the previous owner may have removed the file between open and flock: then this lock guards nothing
            with contextlib.suppress(FileNotFoundError):
                if os.stat(lock).st_ino == os.fstat(descriptor).st_ino:
                    break
            os.close(descriptor)
        try:
            yield
        finally:
            os.close(descriptor)

    def _drop_torn_line(self) -> None:
        if not self._samples_path.is_file():
            return
        with open(self._samples_path, "r+b") as stream:
            data = stream.read()
            stream.truncate(data.rfind(b"\n") + 1)


class Writer:
    """What a run may do to its folder while it holds the lock."""

    def __init__(self, folder: RunFolder, stream: Any):
        self.folder = folder
        self._stream = stream

    def manifest(self, record: Mapping[str, Any]) -> None:
        """Replace the manifest."""
        self._replace("manifest.json", {"format": FORMAT, **record})

    def sample(self, record: Mapping[str, Any]) -> None:
        """Append one item and flush it to the operating system."""
        self._stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        self._stream.flush()

    def samples(self, records: list[dict[str, Any]]) -> None:
        """Replace all items at once (after re-scoring)."""
        write_lines(self.folder.path / "samples.jsonl", records)

    def traces(self, records: list[dict[str, Any]]) -> None:
        """Replace the recorded steps."""
        write_lines(self.folder.path / "traces.jsonl", records)

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Replace the aggregates; their presence marks the run as finished."""
        self._replace("metrics.json", record)

    def unfinish(self) -> None:
        """Take the aggregates away before anything they were made from is changed."""
        (self.folder.path / "metrics.json").unlink(missing_ok=True)

    def _replace(self, name: str, record: Mapping[str, Any]) -> None:
        text = json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
        write_whole(self.folder.path / name, text)


def find_runs(*roots: str | Path) -> list[RunFolder]:
    """Run folders at or below the roots, linked ones too, in the order of their names."""
    found: dict[Path, RunFolder] = {}
    for root in map(Path, roots):
        for place in sorted(_below(root)):
            if (place / "manifest.json").is_file():
                found.setdefault(place.resolve(), RunFolder(place))
    return list(found.values())


def _below(root: Path) -> Iterator[Path]:
    """`root` and all folders in it, linked ones too, each once."""
    seen: set[Path] = set()
    for name, folders, _ in os.walk(root, followlinks=True):
        if (place := Path(name)).resolve() in seen:
            folders.clear()  # a link to where we have been
        else:
            seen.add(place.resolve())
            yield place


def find_by_key(root: str | Path, key: str) -> RunFolder | None:
    """The run with this key among the folders directly below `root`, whatever its folder is called."""
    for manifest in sorted(Path(root).glob("*/manifest.json")):
        folder = RunFolder(manifest.parent)
        if folder.key == key:
            return folder
    return None


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A JSON Lines file with these records, replaced whole."""
    lines = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    write_whole(path, "".join(lines))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, sees the old or the new content and nothing between."""
    draft = path.with_suffix(path.suffix + ".part")
    with open(draft, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())  # else a power loss may leave the new name with nothing in it
    os.replace(draft, path)


def _plain(name: str) -> str:
    """A name as part of a folder name."""
    return "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in name)
