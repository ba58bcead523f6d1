"""One run as it is asked for: `RunSpec`, whose fields are the options of a run, each written down once.

A field carries everything that is known of its option: type, default, help, bounds, whether a sweep expands it, where
it stands in a run's identity, and whether rows must share it to be compared. The flags of ``run``, ``sweep`` and
``generate``, the keys of a recipe, the key of a finished run and the columns that rows are paired on are read off these
fields (`OPTIONS`).

Building a spec checks whatever needs no import: numbers, names, ranges. `RunSpec.resolve` finds out the rest
(`dlmbench.request.resolved`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from dlmbench.backbone.descriptor import ATTENTIONS, GRIDS, Descriptor
from dlmbench.errors import RequestError
from dlmbench.files import Json
from dlmbench.models.presets import default_model
from dlmbench.request import values
from dlmbench.request.shared import OWNERS, POLICIES
from dlmbench.request.values import Converter, number, one_of, optional, text
from dlmbench.tasks.protocols import DEFAULT, PROTOCOLS

if TYPE_CHECKING:
    from dlmbench.request.resolved import Machine, ResolvedRun

SERVED = "served"  # the method of a run whose answers a server gives
APIS = ("dlmbench", "sglang", "vllm", "lmdeploy", "diffulex", "openai")  # interfaces of servers
T = TypeVar("T")
HELPERS = ("draft", "guide", "reference", "head")
BASELINES = ("static", "threshold")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Option:
    """What is known of an option of a run, beside its type and default.

    Args:
        help: for ``--help``.
        convert: makes the value from what was written, or refuses it.
        shown: the default in words, where the field's own says nothing.
        panel: heading under which ``--help`` lists it.
        many: does a sweep expand lists and ranges of it?
        key: its place in a run's identity; empty where it decides through something else that stands there (weights,
            prompts, parameters), or nothing.
        paired: must two rows share it to be compared item by item?
        place: names a model, a folder or a file.
        about: "items" for what is asked of a task and where rows are kept, which verbs that decode other prompts do
            not take; "server" for whom to ask instead; "rule" for the decoder's own rule, whatever the network; else
            empty.
        word: for it before its value, where that tells two rows apart; empty where the value says all, None for its
            name.
        told: published with a paper's figures, and named where ours is another (`dlmbench.analysis.published`).
        local: how this process decodes; a server decides that itself.
    """

    help: str
    convert: Converter[object]
    shown: str | None = None
    panel: str | None = None
    many: bool = True
    key: str = ""
    paired: bool = False
    place: bool = False
    about: str = ""
    told: bool = False
    word: str | None = None
    local: bool = False


def option(
    default: T, help: str, convert: Converter[T], *, shown: str | None = None, panel: str | None = None,
    many: bool = True, key: str = "", paired: bool = False, place: bool = False, about: str = "", told: bool = False,
    word: str | None = None, local: bool = False,
) -> T:  # fmt: skip
    """A field of `RunSpec`; the rest as in `Option`."""
    known = Option(help, convert, shown, panel, many, key, paired, place, about, told, word, local)
    return field(default=default, metadata={"option": known})


def _helper(help: str) -> str | None:
    return option(None, help, optional(text), panel="Models", place=True, local=True)


def _described(help: str, convert: Converter[T], many: bool = True, local: bool = True) -> T | None:
    """What the user says of a checkpoint that does not say it."""
    return option(None, help, optional(convert), panel="Models", shown="by model", many=many, local=local)


def _server(help: str, convert: Converter[T], shown: str | None = None, many: bool = True, paired=False) -> T | None:
    """What is asked of a server."""
    return option(None, help, optional(convert), panel="Server", shown=shown, many=many, paired=paired, about="server")


@dataclass(frozen=True)
class RunSpec:
    """One row of a table: a method at one setting, on one task, with one model."""

    method: str = field(
        metadata={"option": Option("Decoding method; see dlmbench list methods.", text, key="method", about="rule")}
    )
    task: str = field(
        metadata={
            "option": Option("Task; see dlmbench list tasks.", text, key="task", paired=True, about="items", word="")
        }
    )
    model: str = field(
        default_factory=default_model,
        metadata={"option": Option("Preset, folder or hub name.", text, shown="nano2", place=True, word="")},
    )
    like: str | None = option(
        None, "Preset whose settings a folder or hub name takes, or none.", optional(text), panel="Models"
    )
    threshold: float | None = option(
        None, "Value of the method's threshold.", optional(number(float)), about="rule", local=True
    )
    settings: values.Settings = field(
        default_factory=dict,
        metadata={
            "option": Option(
                "An option of a method; see dlmbench show METHOD. Repeatable.",
                values.settings,
                many=False,
                about="rule",
                local=True,
            )
        },
    )
    against: tuple[str, ...] = option(
        BASELINES, "Baselines that come along, or none.", values.names, shown="static,threshold", many=False,
        about="items",
    )  # fmt: skip
    limit: int | None = option(None, "First N items only.", optional(number(int, 1)), about="items")
    split: str = option(
        "test", "test reports, dev chooses settings.", one_of(("test", "dev")), key="split", paired=True,
        about="items", word="",
    )  # fmt: skip
    draft: str | None = _helper("Draft model.")
    guide: str | None = _helper("Guide model.")
    reference: str | None = _helper("Reference model.")
    head: str | None = _helper("Folder of a trained head.")
    attention: str | None = _described(f"How the model attends: {', '.join(ATTENTIONS)}.", one_of(ATTENTIONS))
    mask_id: int | None = _described("Number of its mask token.", number(int, 0))
    shift: int | None = _described("1 when its head predicts the next position, else 0.", number(int, 0, 1))
    grid: str | None = _described(f"Where its blocks lie: {', '.join(GRIDS)}.", one_of(GRIDS))
    bos: bool | None = _described("Begin raw prompts with BOS.", values.flag, local=False)
    end_ids: tuple[int, ...] | None = _described("Tokens that end a row, as 1,2.", values.ids, many=False, local=False)
    block_length: int | None = option(
        None, "Positions decoded together.", optional(number(int, 1)), shown="by model", paired=True, about="rule",
        told=True, word="block", local=True,
    )  # fmt: skip
    gen_length: int | None = option(
        None, "Most tokens an item.", optional(number(int, 1)), shown="by task", paired=True, told=True
    )
    cache: str = option(
        "none", f"{', '.join(POLICIES)} (bidirectional).", one_of(tuple(POLICIES)), key="cache", paired=True,
        told=True, local=True,
    )  # fmt: skip
    store: str | None = option(
        None, "fused, or separate: an extra forward a block.", optional(one_of(("fused", "separate"))),
        shown="fused where it can be", key="store", paired=True, local=True,
    )  # fmt: skip
    protocol: str = option(
        DEFAULT, "How the task is asked and read; see dlmbench list protocols.", one_of((DEFAULT, *PROTOCOLS)),
        paired=True, about="items",
    )  # fmt: skip
    num_fewshot: int | None = option(
        None, "Worked examples.", optional(number(int, 0)), shown="by task", about="items", told=True
    )
    chat_template: bool | None = option(
        None, "Put prompts into the model's chat markup.", optional(values.flag), shown="by model"
    )
    temperature: float = option(
        0.0, "0 is greedy.", number(float, 0), key="sampling.temperature", paired=True, about="rule", told=True
    )
    top_k: int = option(
        0, "0 keeps all.", number(int, 0), key="sampling.top_k", paired=True, about="rule", told=True, local=True
    )
    top_p: float = option(
        1.0, "1 keeps all.", number(float, 0, 1), key="sampling.top_p", paired=True, about="rule", told=True, local=True
    )
    batch_size: int | str = field(
        default="auto",
        metadata={
            "option": Option(
                "Rows decoded together.",
                values.batch_size,
                key="batch_size",
                paired=True,
                told=True,
                word="batch",
                local=True,
            )  # fmt: skip
        },
    )
    device: str = option(
        "auto", "auto, cpu, cuda or cuda:N.", values.device, key="device", paired=True, word="", local=True
    )
    dtype: str = option(
        "auto", "auto, float32, bfloat16 or float16.", one_of(DTYPES), key="dtype", paired=True, word="", local=True
    )
    seed: int = option(0, "Seed of every draw.", number(int, 0), key="seed", paired=True, about="rule")
    data_dir: str | None = option(
        None, "Folder with the task's JSONL files, instead of the hub.", optional(text), many=False, about="items"
    )
    out: str = option("runs", "Where run folders are kept.", text, panel="Output", many=False, about="items")
    plugin: str | None = option(
        None, "Python file that registers a decoder.", optional(text), many=False, place=True, about="rule", local=True
    )
    server: str | None = _server("Ask the server at this URL, which decodes as it was started to.", text, many=False)
    api: str | None = _server(f"Its interface: {', '.join(APIS)}.", one_of(APIS), many=False, paired=True)
    concurrency: int | None = _server("Requests under way at a time.", number(int, 1), shown="1")
    rate: float | None = _server(
        "Requests a second that arrive at random in timed passes, instead of one after another.", number(float, 1e-6),
        paired=True,
    )  # fmt: skip
    slo: float | None = _server("Seconds that a request may take: how many a second do?", values.seconds, paired=True)
    server_flags: str | None = _server(
        "What it was started with, where it does not tell: part of the row's name and key.",
        values.placeless,
        many=False,
    )

    def __post_init__(self) -> None:
        for name, known in OPTIONS.items():
            object.__setattr__(self, name, known.convert(getattr(self, name), name))
        if self.top_p == 0:
            raise RequestError("top_p is 0, which keeps no token; it lies above 0 and at most at 1.")
        strangers = [name for name in self.settings if name not in (self.method, *self.against, *OWNERS)]
        if strangers:
            raise RequestError(f"--set names {strangers[0]}, which is not a method of this run ({self.method}).")

    def resolve(self, machine: Machine | None = None) -> ResolvedRun:
        """Look up model and method, bind the options, settle what ``auto`` means on this machine (or on another), and
        refuse what cannot work. Loads no weights.

        Raises RequestError with the reason and the remedy.
        """
        from dlmbench.request import resolved, served

        return served.resolved(self) if self.served else resolved.resolved(self, machine)

    @property
    def served(self) -> bool:
        """Does it speak of a server? Then `dlmbench.request.served` says whether it is a run."""
        return self.method == SERVED or any(getattr(self, name) is not None for name in REMOTE)

    def baseline(self, method: str, threshold: float | None, own: Mapping[str, Json] = MappingProxyType({})) -> RunSpec:
        """This run by another method, with that method's `own` settings, beside which it is judged."""
        return replace(
            self,
            method=method,
            threshold=threshold,
            settings={**({method: own} if own else {}), **self.shared_settings},
            cache=self.shared_cache,
        )

    @property
    def shared_cache(self) -> str:
        """The cache policy of the rows beside this one: prompt belongs to one method, beside which others have none."""
        return "none" if self.cache == "prompt" else self.cache

    @property
    def descriptor(self) -> Descriptor:
        """What the user says about the model, by flags or by a protocol."""
        published = PROTOCOLS.get(self.protocol)
        return Descriptor(
            attention=self.attention,
            mask_id=self.mask_id,
            shift=self.shift,
            grid=self.grid,
            bos_on_raw_prompts=self.bos if published is None or self.bos is not None else published.bos,
            end_ids=self.end_ids,
        )

    @property
    def shared_settings(self) -> dict[str, dict[str, Json]]:
        """Settings that reach every method of the run."""
        return {owner: dict(self.settings[owner]) for owner in OWNERS if owner in self.settings}

    def portable(self) -> dict[str, Json]:
        """The spec as JSON that names no place on this machine: folders and files become their last component."""
        record: dict[str, Json] = dataclasses.asdict(self)
        for name, known in OPTIONS.items():
            if known.place:
                record[name] = _placeless(record[name])
        own = {name: _placeless(value) for name, value in self.settings.get(self.method, {}).items()}
        record["settings"] = {self.method: own, **self.shared_settings}
        del record["out"], record["data_dir"], record["against"], record["server"]
        return record

    @classmethod
    def from_portable(cls, record: Mapping[str, Json]) -> RunSpec:
        """What `portable` wrote, by this or an earlier version."""
        return cls.written({name: value for name, value in record.items() if name in OPTIONS})

    @classmethod
    def from_flags(cls, given: Mapping[str, Json], **usual: Json) -> RunSpec:
        """From the flags of a verb, ``set`` as it was written; `usual`: what the verb settles itself."""
        options = {name: value for name, value in given.items() if name != "set"}
        return cls.written({**usual, **options, "settings": values.assigned(given.get("set"))})

    @classmethod
    def written(cls, options: Mapping[str, Any]) -> RunSpec:
        """From options as flags, recipes and files have them: each is converted by its own `Option`."""
        return cls(**options)


def _placeless(value: Json) -> Json:
    """The last component of what names a place on this machine; anything else as it is."""
    if isinstance(value, str) and value and (Path(value).is_absolute() or Path(value).exists()):
        return Path(value).name
    return value


OPTIONS: dict[str, Option] = {f.name: f.metadata["option"] for f in dataclasses.fields(RunSpec)}
REMOTE: tuple[str, ...] = tuple(name for name, known in OPTIONS.items() if known.about == "server")
PAIRED: tuple[str, ...] = tuple(name for name, known in OPTIONS.items() if known.paired)
