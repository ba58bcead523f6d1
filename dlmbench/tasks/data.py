"""Where the items come from: files shipped with the package, the user's folder, or the Hugging Face hub.

The hub is asked only after a short probe. Its client retries for many seconds before it gives up, and whoever has no
network should read the remedy at once.
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlmbench.errors import RequestError

if TYPE_CHECKING:
    from datasets import DatasetDict

SHIPPED = Path(__file__).parent / "nano" / "data"
PROBE_SECONDS = 4.0  # a hub that does not answer in this time counts as not there


Row = dict[str, Any]


def shipped(name: str, change: Callable[[Row], Row | None] = lambda row: row) -> DatasetDict:
    """The shipped sets ``<name>-dev.jsonl`` and ``<name>-test.jsonl`` as splits dev and test.

    `change` may rewrite a row, or leave it out by returning None.
    """
    rows = {split: map(change, read_jsonl(SHIPPED / f"{name}-{split}.jsonl")) for split in ("dev", "test")}
    return as_dataset({split: [row for row in rows[split] if row is not None] for split in rows})


def local(task: str, folder: str, splits: Iterable[str], fields: Sequence[str]) -> DatasetDict:
    """The splits that lie in `folder` (or in its subfolder called like the task) as ``<split>.jsonl``.

    Splits without a file are left out; every row must have the `fields`.

    Raises RequestError for a folder that does not exist, for a line that is no JSON object, and for a missing field.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise RequestError(f"Data folder {folder!r} does not exist; --data-dir takes a folder with JSONL files.")
    if (place / task).is_dir():
        place = place / task
    files = {split: place / f"{split}.jsonl" for split in splits}
    rows = {split: list(read_jsonl(path, fields)) for split, path in files.items() if path.is_file()}
    for split, content in rows.items():
        if not content:
            raise RequestError(f"{split}.jsonl in {folder!r} is empty; {task} needs at least one item in it.")
    return as_dataset(rows)


def read_jsonl(path: Path, fields: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a JSONL file, each with all `fields`. Raises RequestError with the line that is wrong."""
    # Split at newlines only: str.splitlines would also cut at the line separators that a text field may contain.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            place = f"{path.name}, line {number},"
            raise RequestError(f"{place} is not JSON ({error.msg}); write an object a line.") from error
        missing = [name for name in fields if not isinstance(row, dict) or name not in row]
        if missing:
            needed = ", ".join(fields)
            raise RequestError(f"{path.name}, line {number}, has no field {missing[0]!r}; every line needs {needed}.")
        yield row


def as_dataset(rows: Mapping[str, list[Row]]) -> DatasetDict:
    """In-memory data set of the kind that lm-eval works on."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_list(content) for split, content in rows.items()})


def from_hub(task: str, path: str, name: str | None, files: str, options: Mapping[str, Any]) -> DatasetDict:
    """A data set of the hub or of its cache; `files` says in the error what a local folder would have to hold."""
    import datasets

    with hub(task, f"the data set {path}", files):
        return datasets.load_dataset(path, name, **options)


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
def quiet() -> Iterator[None]:
    """No progress bars of the datasets library while small tables are rewritten."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


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
