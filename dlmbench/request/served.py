"""A run whose answers a server gives: `ServedRun`, with what is refused before anybody is asked.

The server decides how it decodes; what it tells of that (`dlmbench.runs.record.ServerFacts`) names the row and stands
in its key. Left out: whatever needs the server or the tokenizer (`dlmbench.runs.served`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dlmbench.errors import RequestError
from dlmbench.models.descriptors import with_flags
from dlmbench.models.presets import resolve
from dlmbench.request.resolved import ResolvedRun
from dlmbench.request.rules import check_protocol, protocol_notes
from dlmbench.request.run_spec import BASELINES, OPTIONS, REMOTE, SERVED, RunSpec
from dlmbench.request.shared import SharedOptions

if TYPE_CHECKING:
    from dlmbench.runs.record import Json, ServerFacts


@dataclass(frozen=True)
class ServedRun(ResolvedRun):
    """A run on a server. `batch_size` are the requests under way at a time."""

    server: ServerFacts | None = None  # None until it was asked

    @property
    def facts(self) -> ServerFacts:
        if self.server is None:
            raise ValueError("the server was not asked yet")
        return self.server

    @property
    def settled(self) -> RunSpec:
        return replace(self.spec, batch_size=self.batch_size)

    @property
    def label(self) -> str:
        """``LowConfidence (sglang 0.5.9)``: the algorithm as the server tells it, or as the user does, and the engine.

        A row of our own server has the name that the decoder has in process.
        """
        if self.server is None:
            return f"{self.spec.model} ({self.spec.api})"
        algorithm = self.server.flags.get("label") or self.server.flags.get("dllm_algorithm")
        words = [str(word) for word in (algorithm, self.server.stated) if word] or ["served"]
        return f"{' '.join(words)} ({' '.join([self.server.api, self.server.version or '']).strip()})"

    @property
    def trained(self) -> bool:
        return True

    @property
    def version(self) -> str:
        return self.facts.version or "not told"

    @property
    def parameters(self) -> dict[str, Json]:
        """What the server was started with."""
        stated = {"stated": self.facts.stated} if self.facts.stated else {}
        return {**self.facts.flags, **stated}

    def key_record(self, prompts: str, limits: Mapping[str, Json], content: Mapping[str, Json]) -> dict[str, Json]:
        """Everything that is known to decide the answers, for the run's key; as `dlmbench.request.key.identity`."""
        spec = self.spec
        return {
            "server": {one.name: getattr(self.facts, one.name) for one in fields(self.facts)},
            "weights": self.weights,
            "prompts": prompts,
            "limits": dict(limits),
            "content": dict(content),
            "task": spec.task,
            "split": spec.split,
            "temperature": spec.temperature,
            "seed": spec.seed,
            "concurrency": self.batch_size,
            **{name: value for name, value in {"rate": spec.rate, "slo": spec.slo}.items() if value is not None},
        }

    @property
    def weights(self) -> dict[str, Json]:
        """role -> hash of its weights, where the server tells it; else the model's name there."""
        told = self.facts.flags.get("weights")
        return dict(told) if isinstance(told, dict) else {"target": f"{self.facts.api}: {self.facts.model}"}


def resolved(spec: RunSpec) -> ServedRun:
    """The run that a spec with a server asks for. Asks nobody.

    Raises RequestError for options that the server decides, and for those of a server without one.
    """
    from dlmbench.decoders.base import Decoder, NoOptions  # nobody's, and torch with them

    if spec.server is None:
        lonely = [f"--{name.replace('_', '-')}" for name in REMOTE if getattr(spec, name) is not None]
        flag = (lonely or ["--method served"])[0]
        raise RequestError(f"{flag} asks a server, and none is named: give --server URL and --api.")
    if spec.api is None:
        raise RequestError("--server needs --api, the interface by which it is asked; for example --api sglang.")
    if spec.method != SERVED:
        raise RequestError(
            f"--method is {spec.method!r} and a server decodes as it was started to: leave it out; what its row is to "
            "be called beside goes into --server-flags."
        )
    usual = {one.name: one.default for one in fields(RunSpec)}
    for name, known in OPTIONS.items():
        if known.local and name != "settings" and getattr(spec, name) != usual[name]:
            raise RequestError(f"--{name.replace('_', '-')} is decided by the server: leave it out, and start it so.")
    if spec.settings:
        raise RequestError("--set is decided by the server: leave it out, and start it so.")
    missing = [folder for folder in spec.against if folder not in BASELINES and not Path(folder).is_dir()]
    if missing or (spec.against != BASELINES and set(spec.against) & set(BASELINES)):
        wrong = (missing or list(spec.against))[0]
        raise RequestError(f"--against is {wrong!r}; beside a server it names folders of runs made here.")
    check_protocol(spec)
    preset = with_flags(resolve(spec.model, spec.like), spec.descriptor)
    return ServedRun(
        spec, preset, Decoder, NoOptions(), {}, 0, SharedOptions.bind({}, {}), tuple(protocol_notes(spec)),
        batch_size=spec.concurrency or 1,
    )  # fmt: skip
