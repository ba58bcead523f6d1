"""One folder a run: manifest.json, samples.jsonl, traces.jsonl, metrics.json (`dlmbench.runs.record` is their schema).

samples.jsonl is appended and flushed item by item, so a killed run loses at most the items in flight. A line that was
cut by the kill is removed when the run goes on; manifest and metrics are replaced whole, never half written. An
advisory lock keeps a second writer out and dies with its process. metrics.json is written last: it marks a run as
finished.

A `RunFolder` parses each of its files once, and again only when it has changed. A sweep's folder also keeps
``manifests.jsonl``, one line a run with its manifest and metrics: enough for a table where the folders did not come
along.

Left out: locking on network file systems without flock, and recovery from damage that is not a torn last line.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from dlmbench.errors import RunError
from dlmbench.runs.record import Json, Manifest, Metrics, Sample, Trace, plain, typed, upgraded

BUNDLE = "manifests.jsonl"
_KEY_LETTERS = 8
T = TypeVar("T")


def prompt_hash(prompt: str) -> str:
    """Short hash of a prompt's text, one per sample."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


class RunFolder:
    """The files of one run. Open with `RunFolder.at`; write only inside `writing`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._parsed: dict[str, tuple[object, Any]] = {}  # file -> (its state when it was read, what stands in it)

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
        return self.manifest.key if self.begun else None

    @property
    def begun(self) -> bool:
        """Is there a manifest?"""
        return self._once("manifest.json", self._read_manifest) is not None

    @property
    def finished(self) -> bool:
        return self.begun and self._once("metrics.json", self._read_metrics) is not None

    @property
    def manifest(self) -> Manifest:
        """Raises RunError when there is none yet or the file is not a run's."""
        found = self._once("manifest.json", self._read_manifest)
        if found is None:
            raise RunError(f"{self.name} holds no run; give the folder of a run.")
        return found

    @property
    def metrics(self) -> Metrics:
        """The aggregates. Raises RunError while the run is unfinished or when they cannot be read."""
        found = self._once("metrics.json", self._read_metrics)
        if found is None:
            raise RunError(f"{self.name} is not finished; the command that began it goes on with it.")
        return found

    @property
    def samples(self) -> Sequence[Sample]:
        """All complete lines, in the order in which items finished; a torn last line is left out.

        Raises RunError for a damaged line anywhere else, and for an item that stands there twice.
        """
        return self._once("samples.jsonl", self._read_samples)

    @property
    def traces(self) -> Sequence[Trace]:
        """Recorded steps of the first items; empty when none were recorded or the file is damaged: then they are
        recorded again."""
        return self._once("traces.jsonl", self._read_traces)

    def _once(self, name: str, read: Callable[[], T]) -> T:
        state = self._state(name)
        if name not in self._parsed or self._parsed[name][0] != state:
            self._parsed[name] = state, read()
        return self._parsed[name][1]

    def _state(self, name: str) -> object:
        """Other whenever the file may be; None where there is none."""
        try:
            found = os.stat(self.path / name)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _read_manifest(self) -> Manifest | None:
        return self._read("manifest.json", Manifest)

    def _read_metrics(self) -> Metrics | None:
        return self._read("metrics.json", Metrics)

    def _read(self, name: str, kind: type[T]) -> T | None:
        """A file's record; None for one that is missing, cut short by a crash, or somebody else's."""
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return parsed(kind, json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError):
            self._pass_over(name)
            return None

    def _read_samples(self) -> list[Sample]:
        found: list[Sample] = []
        data = self._samples_path.read_bytes() if self._samples_path.is_file() else b""
        for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
            try:
                found.append(Sample.read(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(
                    f"Line {number} of {self.name}/samples.jsonl is damaged; remove the folder and run again."
                ) from error
        if len({sample.key for sample in found}) != len(found):
            raise RunError(f"{self.name}/samples.jsonl holds an item twice; remove the folder and run again.")
        return found

    def _read_traces(self) -> list[Trace]:
        path = self.path / "traces.jsonl"
        try:
            lines = path.read_bytes().splitlines() if path.is_file() else []
            return [typed(Trace, json.loads(line)) for line in lines]
        except (ValueError, KeyError, TypeError):
            self._pass_over("traces.jsonl")
            return []

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

    def __init__(self, folder: RunFolder, stream: IO[str]):
        self.folder = folder
        self._stream = stream

    def manifest(self, manifest: Manifest) -> None:
        """Replace the manifest."""
        self._replace("manifest.json", plain(manifest))

    def sample(self, sample: Sample) -> None:
        """Append one item and flush it to the operating system."""
        self._stream.write(_line(plain(sample)))
        self._stream.flush()

    def samples(self, samples: Iterable[Sample]) -> None:
        """Replace all items at once (after re-scoring)."""
        self._replace_lines("samples.jsonl", samples)

    def traces(self, traces: Iterable[Trace]) -> None:
        """Replace the recorded steps."""
        self._replace_lines("traces.jsonl", traces)

    def metrics(self, metrics: Metrics) -> None:
        """Replace the aggregates; their presence marks the run as finished."""
        self._replace("metrics.json", plain(metrics))

    def unfinish(self) -> None:
        """Take the aggregates away before anything they were made from is changed."""
        (self.folder.path / "metrics.json").unlink(missing_ok=True)

    def _replace(self, name: str, record: Json) -> None:
        write_whole(self.folder.path / name, json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False) + "\n")

    def _replace_lines(self, name: str, records: Iterable[object]) -> None:
        write_lines(self.folder.path / name, map(plain, records))


class BundledRun(RunFolder):
    """A run of which only a line of a sweep's ``manifests.jsonl`` is here: its manifest and metrics."""

    def __init__(self, sweep: Path, name: str, manifest: Manifest, metrics: Metrics):
        super().__init__(sweep / name)
        held = {"manifest.json": manifest, "metrics.json": metrics, "samples.jsonl": [], "traces.jsonl": []}
        self._parsed = {name: (None, value) for name, value in held.items()}


def parsed(kind: type[T], record: Any) -> T:
    """A record of any format. Raises ValueError, KeyError or TypeError for what is none."""
    if not isinstance(record, dict) or (kind is Manifest and "format" not in record):
        raise ValueError("not a run's record")
    return typed(kind, upgraded(kind, record))


def find_runs(*roots: str | Path) -> list[RunFolder]:
    """Runs at or below the roots, linked ones too, in the order of their names; those of a bundle where their folders
    are not here."""
    found: dict[Path, RunFolder] = {}
    for root in map(Path, roots):
        for place in sorted(_below(root)):
            if (place / "manifest.json").is_file():
                found.setdefault(place.resolve(), RunFolder(place))
            for run in _bundled(place / BUNDLE):
                if not (run.path / "manifest.json").is_file():
                    found.setdefault(run.path.resolve(), run)
    return list(found.values())


def _bundled(file: Path) -> list[RunFolder]:
    """The runs in a sweep's ``manifests.jsonl``."""
    runs: list[RunFolder] = []
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        try:
            record = json.loads(line)
            manifest, metrics = parsed(Manifest, record["manifest"]), parsed(Metrics, record["metrics"])
            runs.append(BundledRun(file.parent, record["folder"], manifest, metrics))
        except (ValueError, KeyError, TypeError):
            name = f"{file.parent.name}/{file.name}"
            warnings.warn(f"A line of {name} is damaged and is passed over.", RuntimeWarning, stacklevel=3)
    return runs


def write_bundle(runs: Iterable[RunFolder], sweep: Path) -> Path:
    """``manifests.jsonl`` of these finished runs, in the sweep's folder; runs that are known from there alone stay."""
    kept = {run.name: run for run in _bundled(sweep / BUNDLE) if not (run.path / "manifest.json").is_file()}
    kept |= {run.name: run for run in runs}
    lines = [
        {"folder": name, "manifest": plain(run.manifest), "metrics": plain(run.metrics)}
        for name, run in sorted(kept.items())
    ]
    write_lines(sweep / BUNDLE, lines)
    return sweep / BUNDLE


def _below(root: Path) -> Iterator[Path]:
    """`root` and all folders in it, linked ones too, each once."""
    seen: set[Path] = set()
    for name, folders, _ in os.walk(root, followlinks=True):
        if (place := Path(name)).resolve() in seen:
            folders.clear()  # a link to where we have been
        else:
            seen.add(place.resolve())
            yield place


class Index:
    """The run folders directly below a root by key, whatever they are called; read once."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._runs: dict[str, RunFolder] = {}
        for manifest in sorted(self.root.glob("*/manifest.json")):
            run = RunFolder(manifest.parent)
            if run.key:
                self._runs.setdefault(run.key, run)

    def at(self, task: str, method: str, key: str) -> RunFolder:
        """The run with this key: the one that exists, or the folder that it will get."""
        if key not in self._runs:
            self._runs[key] = RunFolder.at(self.root, task, method, key)
        return self._runs[key]

    def runs(self) -> list[RunFolder]:
        """All that were there or have been asked for."""
        return list(self._runs.values())


def write_lines(path: Path, records: Iterable[Json | Mapping[str, object]]) -> None:
    """A JSON Lines file with these records, replaced whole."""
    write_whole(path, "".join(map(_line, records)))


def _line(record: Json | Mapping[str, object]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


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
