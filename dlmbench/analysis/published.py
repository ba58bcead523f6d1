"""Published figures beside ours: read recipes/published/*.csv, pair each row with our run of the same setting.

A published row pairs with ours when model, task and method are the same and every option of the method that it names
has the value that we ran; circumstances that differ (block length, answer length, few-shot examples, batch) are listed
with the pair. Forwards are compared without those that only store keys and values: fused stores cost no forward of
their own and separate ones do, so counts with and without them would be two different numbers.

Published numbers are the authors', on their hardware and prompts. They stand beside our rows and are never mixed in.

Where the protocol of a published row is known, every field of it in which ours differs is named with the pair, and no
difference of accuracies is given where the data sets are two. Left out: what a table tells of no protocol.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dlmbench.analysis.row import Row
from dlmbench.errors import RequestError
from dlmbench.models.presets import PRESETS
from dlmbench.request.run_spec import OPTIONS
from dlmbench.resources import recipe_folders
from dlmbench.tasks.protocols import PROTOCOLS, data_set, facts, published_as

COLUMNS = (
    "paper",
    "model",
    "task",
    "method",
    "setting",
    "accuracy",
    "nfe",
    "stores",
    "speed",
    "unit",
    "hardware",
    "source",
)
STORES = ("none", "excluded", "included", "")  # of the published NFE; none: the family has no store forwards
UNITS = ("tok/s", "tokens/forward", "x static", "x fewer steps", "x target alone", "s/item", "")
CIRCUMSTANCES = tuple(name for name, known in OPTIONS.items() if known.told)


@dataclass(frozen=True)
class Published:
    """One published row; accuracy is a share, everything that the paper does not say is None."""

    paper: str
    model: str
    task: str
    method: str
    setting: Mapping[str, str]
    accuracy: float | None
    nfe: float | None
    stores: str
    speed: float | None
    unit: str
    hardware: str
    source: str

    @property
    def asked(self) -> tuple[str, str] | None:
        """(protocol, task under it) that the row was made with; None where that is not known."""
        return published_as(self.paper, self.model, self.task)

    @property
    def data_set(self) -> str:
        return data_set(self.asked[1] if self.asked else self.task)

    @property
    def label(self) -> str:
        """Method and the options of it that the paper names."""
        own = [f"{name}={value}" for name, value in self.setting.items() if name not in (*CIRCUMSTANCES, "limit")]
        return " ".join([self.method, *own])


@dataclass(frozen=True)
class Pair:
    """A published row and ours."""

    published: Published
    ours: Row
    differs: tuple[str, ...]  # circumstances, as sentences
    speed: float | None  # ours, in the published unit

    @property
    def accuracy(self) -> float | None:
        """The published one as a share; None where it is of another data set than ours."""
        return self.published.accuracy if data_set(self.ours.task) == self.published.data_set else None

    @property
    def gap(self) -> float | None:
        """Ours minus published accuracy, as a share; None where they are of two data sets."""
        return None if self.accuracy is None else self.ours.accuracy - self.accuracy

    @property
    def inside(self) -> bool | None:
        """Does our 95 % interval hold the published accuracy?"""
        if self.accuracy is None:
            return None
        return self.ours.metrics.accuracy_low <= self.accuracy <= self.ours.metrics.accuracy_high

    @property
    def forwards(self) -> tuple[float | None, float]:
        """(published, ours): forwards an item without stores; None where the published count includes them."""
        known = self.published.nfe if self.published.stores in ("none", "excluded") else None
        return known, self.ours.denoising


def read(place: Path | None = None) -> list[Published]:
    """All published rows of the CSV files in `place`. Raises RequestError for a wrong column, unit or number."""
    places = [place] if place else [folder / "published" for folder in recipe_folders()]
    files = next((found for found in (sorted(one.glob("*.csv")) for one in places) if found), [])
    if not files:
        name = place.name if place else "recipes/published"
        raise RequestError(f"There are no published figures (*.csv) in {name!r}; give their folder with --figures.")
    return [record for file in files for record in _read_file(file)]


def _read_file(file: Path) -> Iterable[Published]:
    with open(file, newline="", encoding="utf-8") as stream:
        for number, line in enumerate(csv.DictReader(stream), start=2):
            where = f"{file.name}, line {number}"
            if tuple(line) != COLUMNS or None in line.values():
                raise RequestError(f"{where} does not have the columns {', '.join(COLUMNS)}.")
            if line["stores"] not in STORES or line["unit"] not in UNITS or not line["source"]:
                raise RequestError(f"{where} has an unknown word in stores or unit, or no source.")
            accuracy = _number(line["accuracy"], where)
            yield Published(
                **{
                    name: line[name]
                    for name in ("paper", "model", "task", "method", "stores", "unit", "hardware", "source")
                },
                setting=_setting(line["setting"], where),
                accuracy=None if accuracy is None else round(accuracy / 100, 6),
                nfe=_number(line["nfe"], where),
                speed=_number(line["speed"], where),
            )


def _number(text: str, where: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise RequestError(f"{where} has {text!r} where a number belongs.") from None


def _setting(text: str, where: str) -> dict[str, str]:
    pairs = [part.strip().partition("=") for part in text.split(";") if part.strip()]
    if any(not (name and equals and value) for name, equals, value in pairs):
        raise RequestError(f"{where} has the setting {text!r}; it is written name=value; name=value.")
    return {name: value for name, _, value in pairs}


# --- pairing --------------------------------------------------------------------------------------------------------


def pairs(rows: Sequence[Row], published: Iterable[Published]) -> list[Pair]:
    """Every published row that one of ours corresponds to, with the one whose circumstances are nearest."""
    found = []
    for one in published:
        compared = ((row, differences(one, row)) for row in rows)
        fitting = [(row, differs) for row, differs in compared if differs is not None]
        if fitting:
            row, differs = min(fitting, key=lambda pair: len(pair[1]))
            found.append(Pair(one, row, tuple(differs), _our_speed(one, row)))
    return found


def known_for(rows: Iterable[Row], published: Iterable[Published]) -> list[Published]:
    """Published rows on a model and task that we have any row of."""
    ours = list(rows)
    return [one for one in published if any(_speaks_of(one, row) for row in ours)]


def _speaks_of(one: Published, row: Row) -> bool:
    """Is it the row's model, and its task, a variant of it or another name under which its protocol asks the same?"""
    if not _names(one.model) & _names(row.manifest.spec.model):
        return False
    ours, theirs = row.manifest.spec.protocol, one.asked
    if one.task == row.task.partition("/")[0]:
        return True
    if theirs is None or theirs[0] != ours:
        return False
    tasks = PROTOCOLS[ours].tasks
    return tasks.get(row.task) == tasks[theirs[1]]


@cache
def _names(model: str) -> set[str]:
    """What a model is called: as given, its hub name, and the last component of that."""
    model = model.partition("@")[0]
    hub = PRESETS[model].source if model in PRESETS else model
    return {model, hub, hub.rpartition("/")[2]}


def differences(one: Published, row: Row) -> list[str] | None:
    """Circumstances in which a row is not what was published, as "block_length 4 (published 16)"; None for a row of
    another model or task, another method, or another value of an option of the method that the paper names."""
    if one.method != row.method or not _speaks_of(one, row):
        return None
    parameters = row.manifest.parameters
    ours = {name: row.manifest.settled(name) for name in CIRCUMSTANCES} | {"limit": row.metrics.items}
    own = {name: value for name, value in one.setting.items() if name not in ours}
    if not all(name in parameters and _equal(value, parameters[name]) for name, value in own.items()):
        return None
    circumstances = [
        f"{name} {_plain(ours[name])} (published {value})"
        for name, value in one.setting.items()
        if name in ours and not _equal(value, ours[name])
    ]
    return circumstances + _protocol_differences(one, row)


def _protocol_differences(one: Published, row: Row) -> list[str]:
    """The fields of the published protocol in which ours is another, and the hardware of a speed."""
    manifest, task = row.manifest, row.manifest.task
    ours = facts(manifest.spec.protocol, row.task, task.num_fewshot or 0, task.chat_template)
    ours |= {"gen_length": str(manifest.gen_length), "hardware": manifest.environment.device}
    theirs = {"data set": one.data_set}
    if one.asked:
        theirs = facts(*one.asked)
        length = PROTOCOLS[one.asked[0]].tasks[one.asked[1]].gen_length
        theirs |= {"gen_length": str(length)} if length else {}
    theirs |= {"hardware": one.hardware} if one.speed is not None and one.hardware else {}
    told = {"examples" if name == "num_fewshot" else name for name in one.setting}
    return [
        f"{name} {ours[name]} (published {value})"
        for name, value in theirs.items()
        if name not in told and value not in (ours[name], f"first {one.setting.get('limit')}")
    ]


def _equal(written: str, value: object) -> bool:
    """Is the written value the same as ours? Numbers as numbers, everything else as text."""
    try:
        return math.isclose(float(written), float(str(value)))
    except ValueError:
        return written.lower() == str(value).lower()


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _our_speed(one: Published, row: Row) -> float | None:
    """Our number in the unit of the published one, None where we have none."""
    if one.unit == "tok/s":
        return row.tps
    if one.unit == "tokens/forward":
        return (row.metrics.tokens or 0.0) / row.denoising if row.denoising else None
    base = row.group.reference
    if one.unit == "x fewer steps" and base:
        return base.denoising / row.denoising
    if one.unit == "x static" and base and base.tps and row.tps:
        return row.tps / base.tps
    return None
