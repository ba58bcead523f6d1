"""Where the items come from: files shipped with the package, the user's folder, or the Hugging Face hub.

The hub is asked only after a short probe. Its client retries for many seconds before it gives up, and whoever has no
network should read the remedy at once.
"""

from __future__ import annotations

import gzip
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from dlmbench.errors import RequestError

if TYPE_CHECKING:
    from datasets import Dataset

SHIPPED = Path(__file__).parent / "nano" / "data"
PROBE_SECONDS = 4.0  # a hub that does not answer in this time counts as not there


Row = dict[str, Any]  # a record as it is read and rewritten: a `Doc` that is still being made
Splits = Mapping[str, Sequence[Row]]
_FOREIGN = {b"\x1f\x8b": "compressed with gzip; unpack it", b"\xff\xfe": "in UTF-16; save it as UTF-8"}
_FOREIGN[b"\xfe\xff"] = _FOREIGN[b"\xff\xfe"]


class Records(list[Row]):
    """Records as they were read, each with its own types; a field that a record lacks is None.

    A table would give every field one type and take its columns from the first records. What lm-eval's helpers ask of a
    data set beyond rows, `features`, `map` and `filter` is asked of such a table, made when it is needed.
    """

    def __init__(self, rows: Iterable[Row]):
        rows = list(rows)
        self.features = dict.fromkeys(name for row in rows for name in row)
        super().__init__({**self.features, **row} for row in rows)

    @property
    def column_names(self) -> list[str]:
        return list(self.features)

    @overload
    def __getitem__(self, at: SupportsIndex) -> Row: ...

    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...

    @overload
    def __getitem__(self, at: str) -> list[object]: ...

    def __getitem__(self, at: SupportsIndex | slice | str) -> Row | list[Row] | list[object]:
        return [row[at] for row in self] if isinstance(at, str) else super().__getitem__(at)

    def map(self, function: Callable[[Row], Row], **options: object) -> Records | Dataset:
        """Every row with what `function` makes of it; with options of the datasets library, its table."""
        if options:
            return self._table.map(function, **options)
        return Records({**row, **function(dict(row))} for row in self)

    def filter(self, function: Callable[[Row], bool], **options: object) -> Records | Dataset:
        return (
            self._table.filter(function, **options) if options else Records(row for row in self if function(dict(row)))
        )

    @cached_property
    def _table(self) -> Dataset:
        return _datasets().Dataset.from_list(list(self))

    def __getattr__(self, name: str) -> object:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._table, name)


def shipped(name: str, change: Callable[[Row], Row | None] = lambda row: row) -> dict[str, Records]:
    """The shipped sets ``<name>-dev.jsonl`` and ``<name>-test.jsonl`` as splits dev and test, or their ``.jsonl.gz``.

    `change` may rewrite a row, or leave it out by returning None.
    """
    rows = {split: map(change, shipped_rows(f"{name}-{split}")) for split in ("dev", "test")}
    return as_dataset({split: [row for row in rows[split] if row is not None] for split in rows})


def shipped_rows(name: str) -> Iterator[Row]:
    """The rows of a shipped file, whole or compressed."""
    path = SHIPPED / f"{name}.jsonl"
    if path.is_file():
        return read_jsonl(path)
    return map(json.loads, gzip.decompress((SHIPPED / f"{name}.jsonl.gz").read_bytes()).decode().splitlines())


def local(task: str, folder: str, splits: Iterable[str], fields: Sequence[str]) -> dict[str, Records]:
    """The splits that lie in `folder` (or in its subfolder called like the task) as ``<split>.jsonl``.

    Splits without a file are left out; every row must have the `fields`.

    Raises RequestError for a folder that does not exist, for a line that is no JSON object, and for a missing field.
    """
    place = _place(task, folder)
    files = {split: place / f"{split}.jsonl" for split in splits}
    rows = {split: list(read_jsonl(path, fields)) for split, path in files.items() if path.is_file()}
    for split, content in rows.items():
        if not content:
            raise RequestError(f"{split}.jsonl in {folder!r} is empty; {task} needs at least one item in it.")
    return as_dataset(rows)


def is_of_others(task: str, folder: str) -> bool:
    """Whether `folder` has subfolders with data, none of them called like the task, and no data of its own."""
    place = _place(task, folder)
    return not any(place.glob("*.jsonl")) and any(place.glob("*/*.jsonl"))


def _place(task: str, folder: str) -> Path:
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise RequestError(f"Data folder {folder!r} does not exist; --data-dir takes a folder with JSONL files.")
    named = (place / task, place / task.partition("/")[0])  # a variant may have data of its own
    return next((folder for folder in named if folder.is_dir()), place)


def read_jsonl(path: Path, fields: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a JSONL file in UTF-8, each an object with all `fields`, none of them null.

    Raises RequestError with the line that is wrong.
    """
    content = path.read_bytes()
    if content[:2] in _FOREIGN:
        raise RequestError(f"{path.name} is {_FOREIGN[content[:2]]}.")
    # Split at newlines only: str.splitlines would also cut at the line separators that a text field may contain.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            yield _row(line, f"{path.name}, line {number},", fields)


def _row(line: bytes, place: str, fields: Sequence[str]) -> Row:
    needed = f"every line needs {', '.join(fields)}"
    try:
        row = json.loads(line.decode("utf-8"))
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        what = f"byte 0x{line[error.start]:02x} at {error.start + 1}"
        raise RequestError(f"{place} is not UTF-8 ({what}); save the file as UTF-8.") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise RequestError(f"{place} has half a character ({half!a}), which no text can hold; mend it.") from error
    except ValueError as error:  # also an integer of thousands of digits
        raise RequestError(f"{place} is not JSON ({getattr(error, 'msg', error)}); write an object a line.") from error
    except RecursionError as error:
        raise RequestError(f"{place} is nested too deeply to be read; write an object a line.") from error
    if not isinstance(row, dict):
        raise RequestError(f"{place} is a JSON {type(row).__name__}; write an object a line.")
    for name in fields:
        if name not in row:
            raise RequestError(f"{place} has no field {name!r}; {needed}.")
        if row[name] is None:
            raise RequestError(f"{place} has null as {name!r}; {needed}.")
    return row


def as_dataset(rows: Mapping[str, Iterable[Row]]) -> dict[str, Records]:
    """In-memory data set of the kind that lm-eval works on."""
    return {split: Records(content) for split, content in rows.items()}


def from_hub(task: str, path: str, name: str | None, files: str, options: Mapping[str, object]) -> Splits:
    """A data set of the hub or of its cache; `files` says in the error what a local folder would have to hold."""
    with hub(task, f"the data set {path}", files):
        return _datasets().load_dataset(path, name, **options)


def _datasets() -> ModuleType:
    """The library, without its progress bars: they would stand among ours."""
    import datasets

    datasets.disable_progress_bars()
    return datasets


@contextmanager
def hub(task: str, what: str, files: str) -> Iterator[None]:
    """Everything inside may use the hub; without network only its cache, and a failure names the remedies.

    Raises RequestError for whatever the hub's client raises inside.
    """
    online = _hub_answers()
    try:
        if online:
            yield
        else:
            with offline():
                yield
    except RequestError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}" if online else "no network"
        raise RequestError(
            f"Task {task} needs {what}, which is not in the Hugging Face cache and cannot be fetched ({why}). Connect "
            f"to the network, or set HF_HOME to a cache that has it, or give local files with --data-dir ({files})."
        ) from error


def _hub_answers() -> bool:
    """Whether the hub answers anything at all. The probe runs aside: name resolution knows no time limit of its own."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []

    def probe() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
                answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)
        except OSError:
            answers.append(False)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(answers) and answers[0]


@contextmanager
def offline() -> Iterator[None]:
    """The hub's clients read their switches when they are called, so they can be turned for the time of one call."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
