"""What a run leaves behind, as typed records: `Manifest`, `Sample`, `Metrics`, `Trace`.

This is the schema of the files of a run folder (`dlmbench.runs.folder`), written and read here and nowhere else: a
field's name is its key in the file. FORMAT 2 is written; `upgraded` turns what an earlier version wrote into it.
Imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from dlmbench.files import Json as Json
from dlmbench.forwards import ForwardKey
from dlmbench.request.run_spec import RunSpec

FORMAT = 2
UNTOLD = "not told by the server"
UNSTEADY = 1.3  # the fastest of repeated passes over the slowest; above it their speed is not shown


SPARSE = {"sparse": True}  # metadata of a field that is left out of its file where it is None

Prices: TypeAlias = dict[ForwardKey, float]  # one forward in plain denoise forwards of the target
Spreads: TypeAlias = dict[ForwardKey, tuple[float, float]]  # the 95 % interval of a price


@dataclass(frozen=True, slots=True)
class Work:
    """What the forwards of one role and kind took, for one item."""

    calls: int
    """Forwards."""
    query_tokens: int
    """Tokens through the layers."""
    key_tokens: int
    """Pairs of a query and a key that it saw."""
    flops: float
    """Multiplications and additions of the layers and the head."""

    @property
    def keys(self) -> float:
        """Keys read, each once a forward however many queries see it."""
        return self.key_tokens * self.calls / self.query_tokens if self.query_tokens else 0.0


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What a server told of an answer beside its text; None is what it did not tell."""

    tokens: int
    """Its own count, whatever it counts."""
    prompt_tokens: int | None = None
    nfe: int | None = None
    """Forwards of the target after prefill."""
    cost: float | None = None
    """In plain denoise forwards, prefill included."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One decoded and scored item: a line of samples.jsonl."""

    key: str
    """The item, as its task names it."""
    prompt_hash: str
    """Of the prompt's text (`dlmbench.runs.folder.prompt_hash`)."""
    ids: list[int]
    """The answer's tokens, the first EOS included."""
    text: str
    """The answer as it was scored."""
    scores: dict[str, Json]
    """``accuracy`` in [0, 1] and whatever else the task says: strict, flexible, unparsed, verdict."""
    counts: dict[str, dict[str, Work]]
    """role -> kind of forward -> its work; empty where a server does not tell it."""
    forwards: dict[ForwardKey, int]
    """Forwards by what decides their price."""
    tokens: int
    """Generated, up to and including the first EOS or stop string."""
    seconds: float
    """From admission to the end of its row; the batch's other rows ran beside it."""
    stop_reason: str
    """``eos``, ``stop`` (a stop string; either of them, where a server tells no more) or ``length``."""
    fallbacks: int
    """Steps in which the decoder's own rule revealed nothing and its fallback did."""
    proposed: int
    """Draft tokens proposed; 0 without a draft."""
    accepted: list[int]
    """How many of them were accepted, a number each time."""
    report: EngineReport | None = field(default=None, metadata=SPARSE)
    """Of an answer that a server gave."""

    @property
    def counted(self) -> bool:
        """Are its forwards known by role and kind?"""
        return self.report is None or bool(self.counts)

    @property
    def nfe(self) -> int | None:
        """Forwards of the target after prefill; None where nobody told them."""
        return self.report.nfe if self.report and not self.counted else self.calls()

    @property
    def accuracy(self) -> float:
        return float(typing.cast(float, self.scores["accuracy"]))

    def calls(self, role: str = "target", kinds: Iterable[str] | None = None) -> int:
        """Forwards of one role: of these kinds, or of every kind after prefill (for the target: NFE)."""
        by_kind = self.counts.get(role, {})
        chosen = kinds if kinds is not None else [kind for kind in by_kind if kind != "prefill"]
        return sum(by_kind[kind].calls for kind in chosen if kind in by_kind)

    @classmethod
    def read(cls, record: Mapping[str, typing.Any]) -> Sample:
        """From a line of samples.jsonl, of any format. Written out, because there are many."""
        forwards = record["forwards"] if "forwards" in record else record["widths"]
        return cls(
            key=record["key"],
            prompt_hash=record["prompt_hash"],
            ids=record["ids"],
            text=record["text"],
            scores=record["scores"],
            counts={
                role: {kind: Work(**work) for kind, work in kinds.items()} for role, kinds in record["counts"].items()
            },
            forwards={_forward(name): number for name, number in forwards.items()},
            tokens=record["tokens"],
            seconds=record["seconds"],
            stop_reason=record["stop_reason"],
            fallbacks=record["fallbacks"] if "fallbacks" in record else record["guards"],
            proposed=record["proposed"],
            accepted=record["accepted"],
            report=EngineReport(**record["report"]) if "report" in record else None,
        )


@dataclass(frozen=True)
class TaskFacts:
    """What was asked."""

    name: str
    """With its variant: ``nano-gsm/easy``."""
    version: int | float | str | None = None
    """lm-eval's version of the task."""
    content_hash: str | None = None
    """Of the data and of the code that scores."""
    num_fewshot: int | None = None
    """Worked examples in the prompt."""
    chat_template: bool = False
    """Were prompts put into the model's chat markup?"""
    items: int | None = None
    """Asked in this run."""


@dataclass(frozen=True)
class ServerFacts:
    """Who answered: what a server tells of itself, by an allow-list, without its address."""

    api: str
    """The interface by which it was asked."""
    model: str | None = None
    """The model's name there."""
    version: str | None = None
    """Of its engine."""
    flags: dict[str, Json] = field(default_factory=dict)
    """What it was started with."""
    stated: str | None = None
    """The same as the user says it (``--server-flags``), for engines that do not."""

    def said(self, name: str) -> str | None:
        """What the user says of something, as ``name=value`` among the words of `stated`."""
        words = (word.partition("=") for word in (self.stated or "").split())
        return next((value for one, _, value in words if one == name and value), None)

    def changes(self, other: ServerFacts) -> list[str]:
        """Names of what the two tell differently."""
        ours, theirs = ({**dataclasses.asdict(one), **one.flags} for one in (self, other))
        names = sorted({*ours, *theirs} - {"flags"})
        return [name for name in names if ours.get(name) != theirs.get(name)]


@dataclass(frozen=True)
class Environment:
    """Who made it: nothing here names a host or a path. Parts of a run whose environments are equal were made under
    the same circumstances."""

    device: str
    """Model of the GPU or the processor."""
    threads: int | None = field(default=None, compare=False)
    """Of torch on the CPU; those of the speed pass, which alone they concern."""
    versions: dict[str, str] = field(default_factory=dict)
    """Package -> version."""
    commit: str | None = None
    """Of the checkout, None for an installed package."""
    samples_before: int | None = field(default=None, compare=False)
    """In a run that several processes made: samples that stood there when this one began."""


@dataclass(frozen=True)
class Circumstances:
    """What the price of a forward depends on, beside the forward itself."""

    weights: dict[str, str]
    """role -> hash of its weights."""
    batch_size: int
    """Rows decoded together."""
    dtype: str
    """Computed in."""
    block_length: int
    """Positions decoded together."""
    task: str
    """Its prompts decide how many keys a forward sees."""
    device: str
    """Model of the GPU or the processor."""
    threads: int | None
    """Of torch on the CPU."""
    torch: str
    """Version."""


@dataclass(frozen=True)
class Calibration:
    """What forwards were measured to cost."""

    circumstances: Circumstances
    """Under which they were measured."""
    seconds_per_denoise: float | None
    """A price of 1 in seconds: one plain denoise forward of the target."""
    prices: Prices
    """Each measured forward."""
    interpolated: list[ForwardKey] = field(default_factory=list)
    """Forwards of the run that were not measured; their price lies between their neighbours'."""
    spreads: Spreads = field(default_factory=dict)
    """95 % interval of each price, from repeats in turns with the plain forward; empty where an earlier version
    measured."""


@dataclass(frozen=True)
class Manifest:
    """What was run: manifest.json, everything but the results."""

    key: str
    """sha256 of `identity`."""
    label: str
    """How its row is called."""
    threshold: float | None
    """Value of the method's threshold, None for a method (or a setting) without one."""
    threshold_unit: str
    """``confidence`` where it is a probability that a position must pass, else empty."""
    parameters: dict[str, Json]
    """Every option of the method, after defaults."""
    method_version: str
    """Of the decoder; for a plug-in with the hash of its file."""
    spec: RunSpec
    """The request, with nothing left to ``auto`` and no place of this machine in it."""
    task: TaskFacts
    block_length: int | None
    """Positions decoded together; None where a server does not tell."""
    gen_length: int
    """Most tokens an item."""
    weights: dict[str, str]
    """role -> hash of its weights and configuration."""
    prompts: str
    """Hash of the items' keys and prompts, in order."""
    identity: dict[str, Json]
    """Everything that decides what the run produces (`dlmbench.request.key`)."""
    environment: Environment
    """Of the process that measured speed and prices."""
    environments: list[Environment] = field(default_factory=list)
    """Of all processes that made samples, in order, when several did."""
    model: dict[str, Json] = field(default_factory=dict)
    """What was loaded; empty until the run is measured."""
    calibration: Calibration | None = None
    """Prices; None until the run is measured."""
    server: ServerFacts | None = field(default=None, metadata=SPARSE)
    """Who answered, where it was a server."""
    format: int = FORMAT

    @property
    def prices(self) -> Prices:
        """Empty before the run is measured."""
        return self.calibration.prices if self.calibration else {}

    @property
    def autoregressive(self) -> bool:
        """Is it one token after the other? Of a server, where it calls its method ``ar``, or the user says so."""
        if self.server is None:
            return self.spec.method == "ar"
        return self.server.flags.get("label") == "ar" or "autoregressive" in (self.server.stated or "").split()

    def settled(self, option: str) -> Hashable:
        """An option of the run as it came out, where more is known of it than what was asked."""
        match option:
            case "task":
                return self.task.name
            case "num_fewshot":
                return self.task.num_fewshot
            case "device":
                return self.environment.device
            case "block_length" | "gen_length":
                return getattr(self, option)
        return getattr(self.spec, option)

    @property
    def spreads(self) -> Spreads:
        """Of the prices; empty where none was kept."""
        return self.calibration.spreads if self.calibration else {}

    @property
    def helper_weights(self) -> dict[str, str]:
        return {role: weights for role, weights in self.weights.items() if role != "target"}


@dataclass(frozen=True)
class Rate:
    """Tokens per second over repeated passes."""

    median: float
    low: float
    high: float

    @property
    def unsteady(self) -> bool:
        """Do the passes lie too far apart for a number?"""
        return self.high > UNSTEADY * self.low


@dataclass(frozen=True)
class RequestTimes:
    """How long requests took, seen from the client, in all passes together; seconds."""

    p50: float
    p95: float
    p99: float
    prefix_cache: str
    """Before each pass: ``flushed``, ``off``, or ``not known``."""
    first_token: float | None = field(default=None, metadata=SPARSE)
    """Median until the first text came, where answers are streamed."""
    rate: float | None = field(default=None, metadata=SPARSE)
    """Requests a second that were sent, at random times; None in a closed loop."""
    slo: float | None = field(default=None, metadata=SPARSE)
    """What a request may take ..."""
    goodput: float | None = field(default=None, metadata=SPARSE)
    """... and how many a second took no longer."""


@dataclass(frozen=True)
class Speed:
    """The speed pass: natural stop, nothing scored."""

    items: int
    """In a pass: the first ones."""
    repeats: int
    """Passes, after a warm-up."""
    same_ids: int
    """Items whose ids were those of the samples, in the last pass."""
    decode: Rate | None
    """Tokens per second of decoding alone; None where a server does not tell it from prefill."""
    end_to_end: Rate
    """The same, prefill included."""
    threads: int | None = None
    """Of torch on the CPU."""
    steady: bool = True
    """False: the number of threads changed in every pass, because other work ran on the machine."""
    label: str | None = None
    """What these numbers do not say."""
    outside: float | None = None
    """Share of the seconds of decoding that passed outside networks' forwards, the median pass's; None where no clock
    of the host can tell."""
    requests: RequestTimes | None = field(default=None, metadata=SPARSE)
    """Of a server."""


@dataclass(frozen=True)
class Metrics:
    """Aggregates over all samples: metrics.json, whose presence marks a run as finished. Means are over items."""

    items: int
    accuracy: float
    accuracy_low: float
    """Of the 95 % Wilson interval, as `accuracy_high`."""
    accuracy_high: float
    strict: float | None = None
    """Share right by the strict reading, where a task has several."""
    flexible: float | None = None
    """Share right by the flexible reading."""
    unparsed: float | None = None
    """Share of answers in which nothing was found."""
    cut_off: float | None = None
    """Share of answers that ended for want of room."""
    verdicts: dict[str, int] = field(default_factory=dict)
    """Programs by how they ended, for tasks that run them."""
    nfe: float | None = None
    """Forwards of the target after prefill, every kind."""
    store_forwards: float | None = None
    """Of these: forwards that only write keys and values."""
    prefills: float | None = None
    """Forwards of the target over the prompt."""
    helpers: dict[str, float] = field(default_factory=dict)
    """role -> passes of a network that is not the target."""
    cost: float | None = None
    """All forwards and passes, prefill too, at their measured price in plain denoise forwards of the target."""
    flops: float | None = None
    """Multiplications and additions."""
    query_tokens: float | None = None
    """Tokens through the layers of all networks."""
    tokens: float | None = None
    """Generated."""
    tpf: float | None = None
    """Tokens of all items / NFE of all items."""
    fallbacks: int | None = 0
    """Steps of all items in which a decoder's fallback revealed; None where a server does not tell."""
    acceptance: float | None = None
    """Accepted share of the proposed draft tokens."""
    accepted_lengths: dict[str, int] = field(default_factory=dict)
    """Accepted length -> how often."""
    speed: Speed | None = None


@dataclass(frozen=True)
class Trace:
    """The recorded steps of one item: a line of traces.jsonl.

    The item is decoded once more, in a pass that is neither timed nor scored, because recording looks at the device
    after every step.
    """

    key: str
    start: int
    """Position of the first token behind the prompt."""
    ids: list[int]
    same_ids: bool
    """Are they those of the stored sample?"""
    words: dict[str, str]
    """id -> text, of every id in the steps."""
    steps: list[dict[str, typing.Any]]
    """As `dlmbench.engine.recorder` made them, numbers cut to five digits."""


# --- to and from JSON -----------------------------------------------------------------------------------------------

T = TypeVar("T")


def plain(value: object) -> Json:
    """A record as JSON: dataclasses become mappings, forward keys strings. There are many, so what is nothing to do
    comes first."""
    kind = type(value)
    if kind in _ATOMS:
        return typing.cast(Json, value)
    if kind is list or kind is tuple:
        return [one if type(one) in _ATOMS else plain(one) for one in typing.cast(list, value)]
    if kind is ForwardKey:
        return str(value)
    if kind is RunSpec:
        return typing.cast(RunSpec, value).portable()
    if isinstance(value, Mapping):
        return {name if type(name) is str else str(name): plain(one) for name, one in value.items()}
    if dataclasses.is_dataclass(kind):
        found = ((name, sparse, getattr(value, name)) for name, sparse in _fields(kind))
        return {name: plain(one) for name, sparse, one in found if one is not None or not sparse}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return typing.cast(Json, value)


_ATOMS = frozenset((str, int, float, bool, type(None)))


@functools.cache
def _fields(kind: type) -> tuple[tuple[str, bool], ...]:
    """Names of a record's fields, and which are left out where they are None."""
    return tuple((f.name, bool(f.metadata.get("sparse"))) for f in dataclasses.fields(kind))


def typed(kind: type[T], record: Mapping[str, typing.Any]) -> T:
    """The dataclass `kind` from its JSON. Raises KeyError or TypeError for one that lacks a field; what the dataclass
    does not know is left out."""
    if kind is RunSpec:
        return typing.cast(T, RunSpec.from_portable(record))
    hints = _hints(typing.cast(typing.Hashable, kind))
    return kind(**{name: _typed(hint, record[name]) for name, hint in hints.items() if name in record})


@functools.cache
def _hints(kind: typing.Hashable) -> dict[str, typing.Any]:
    return typing.get_type_hints(kind)


def _typed(hint: typing.Any, value: typing.Any) -> typing.Any:
    if value is None or hint in (Json, typing.Any):
        return value
    if hint is ForwardKey:
        return _forward(value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return typed(hint, value)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        classes = [one for one in inner if dataclasses.is_dataclass(one)]
        return _typed(classes[0], value) if classes else value
    if origin is dict:
        return {_typed(inner[0], name): _typed(inner[1], one) for name, one in value.items()}
    if origin is tuple:
        return tuple(value)
    if origin is list:
        return [_typed(inner[0], one) for one in value]
    return value


_forward = functools.cache(ForwardKey.parse)


# --- what an earlier version wrote ----------------------------------------------------------------------------------


def upgraded(kind: type, record: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """The JSON of a manifest or of metrics in the present format."""
    if kind is Manifest and record.get("format") == 1:
        record = {"threshold": record.get("knob"), "threshold_unit": record.get("knob_unit", ""), **record, "format": 2}
    if kind is Metrics and "guards" in record:
        record = {"fallbacks": record["guards"], **record}
    speed = record.get("speed") if kind is Metrics else None
    if speed and "tps_decode" in speed:
        rates = {
            name: {"median": speed[old], "low": speed[f"{old}_low"], "high": speed[f"{old}_high"]}
            for name, old in (("decode", "tps_decode"), ("end_to_end", "tps_end_to_end"))
        }
        record = {**record, "speed": {**speed, **rates}}
    return record
