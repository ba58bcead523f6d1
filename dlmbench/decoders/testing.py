"""For authors of decoders: what every decoder promises, tried in seconds, and the tiny random networks to try it on.

    engine = Engine(tiny_networks(decoder, "block_causal"), decoder, batch_size=3)
    engine.generate(random_requests(seed=0))
    assert all(finding.holds for finding in conformance(MyDecoder))

Checked: it ends, makes progress, touches only what it may; a batch of N equals N singles, with prompts of different
lengths; a refilled slot equals a fresh one; it reads no device value on the host; the equalities it declares hold; and,
on request, that it equals a slow reference of itself. What it does not check: quality and speed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from dlmbench.backbone.anchored import AnchoredNetwork
from dlmbench.backbone.bidirectional import Bidirectional
from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.counter import Counter
from dlmbench.backbone.model import Transformer
from dlmbench.backbone.network import Network
from dlmbench.decoders.base import Decision, Decoder, HostRow, Networks, Options, Traits, View
from dlmbench.decoders.predict import Sampling
from dlmbench.engine import Engine, Generation, Request
from dlmbench.engine.canvas import replacements
from dlmbench.engine.lengths import canvas_kind
from dlmbench.errors import DlmbenchError, RequestError
from dlmbench.oracle.contradictions import ITEMS, contradictions
from dlmbench.registry import DECODERS, load_plugin
from dlmbench.request import options

MASK, EOS, VOCABULARY, BLOCK = 3, 1, 89, 4
Singles: TypeAlias = Callable[[], list[Generation]]  # each request in an engine of its own


@dataclass(frozen=True)
class Finding:
    """One promise: its name, whether it holds, and what went wrong; where it holds, what it costs all the same."""

    promise: str
    holds: bool
    detail: str = ""


class BrokenPromise(Exception):
    """A promise does not hold; the message is the finding."""


def decoders_of(path: str | Path) -> list[type[Decoder]]:
    """The decoder classes that a plugin file registers; the registry is left as it was.

    Raises RequestError when the file registers none.
    """
    before = dict(DECODERS._targets)
    try:
        load_plugin(path)
        added = [DECODERS.get(name) for name in DECODERS.names() if before.get(name) != DECODERS._targets[name]]
    finally:
        DECODERS._targets = before
    found = [cls for cls in added if isinstance(cls, type) and issubclass(cls, Decoder)]
    if not found:
        raise RequestError(f"{Path(path).name} registers no decoder; end it with DECODERS.register(name, YourDecoder).")
    return found


def conformance(decoder: type[Decoder], reference: type[Decoder] | None = None, seed: int = 0) -> Iterator[Finding]:
    """Try every promise of `decoder` at its default options, on each attention type that it declares."""
    for attention in decoder.attention:
        suffix = f", {attention}" if len(decoder.attention) > 1 else ""
        for finding in _conformance(decoder, reference, seed, attention):
            yield replace(finding, promise=finding.promise + suffix)


def _conformance(
    decoder: type[Decoder], reference: type[Decoder] | None, seed: int, attention: str
) -> Iterator[Finding]:
    singles = cache(lambda: [_run(attention, decoder(), [request])[0] for request in random_requests(seed)])
    trials: list[tuple[str, Callable[[], str | None]]] = [
        ("progress", lambda: _progress(decoder, seed, attention)),
        ("no host reads", lambda: no_host_reads(decoder, attention)),
        ("N = singles", lambda: _batch_equals_singles(decoder, singles, seed, attention)),
        ("refilled slot = fresh slot", lambda: _refilled_equals_fresh(decoder, singles, seed, attention)),
        ("late flags", lambda: _lag_changes_nothing(decoder, singles, seed, attention)),
    ]
    trials += [(f"equality {text}", _equality(decoder, text, seed, attention)) for text in decoder.equalities]
    if reference is not None:
        trials.append(("equals its reference", lambda: _same(decoder, reference, seed, attention)))
    if attention in ("full", "block_causal") and set(decoder.needs(decoder.Config(), attention)) == {"target"}:
        trials.append(("no impossible token on the ideal model", lambda: _ideal(decoder, seed, attention)))
    for promise, trial in trials:
        try:
            cost = trial()
        except (BrokenPromise, DlmbenchError) as error:
            yield Finding(promise, False, str(error))
        except Exception as error:  # a third-party decoder may fail in any way; the name of the failure is the finding
            yield Finding(promise, False, f"it raised {type(error).__name__}: {error}")
        else:
            yield Finding(promise, True, cost or "")


# --- the promises -----------------------------------------------------------------------------------------------------


def _progress(decoder: type[Decoder], seed: int, attention: str) -> None:
    spy = _Spy(decoder())
    _run(attention, spy, random_requests(seed), batch_size=3, trace=True)


def _batch_equals_singles(decoder: type[Decoder], singles: Singles, seed: int, attention: str) -> None:
    requests = random_requests(seed)
    together = _run(attention, decoder(), requests, batch_size=3)
    _compare(requests, singles(), together, "a batch of 3 differs from singles")


def _refilled_equals_fresh(decoder: type[Decoder], singles: Singles, seed: int, attention: str) -> None:
    requests = random_requests(seed)[:4]
    refilled = _run(attention, decoder(), requests, batch_size=1)
    hint = "state leaks through a refilled slot (keep memory in init_state's tensors, reset by view.fresh)"
    _compare(requests, singles(), refilled, hint)


def _lag_changes_nothing(decoder: type[Decoder], singles: Singles, seed: int, attention: str) -> None:
    requests = random_requests(seed)
    late = _run(attention, decoder(), requests, batch_size=3, lag=1)
    _compare(requests, singles(), late, "reading flags one step late changes the result")


def _equality(decoder: type[Decoder], text: str, seed: int, attention: str) -> Callable[[], None]:
    def trial() -> None:
        ours, _, theirs = text.partition("==")
        name, _, options = theirs.strip().partition(":")
        other = DECODERS.get(name)
        requests = random_requests(seed)
        one, two = decoder(options_of(decoder, ours)), other(options_of(other, options))
        alike = one.needs(one.config, attention) == two.needs(two.config, attention)
        left, right = (_run(attention, each, requests, batch_size=3) for each in (one, two))
        _compare(requests, right, left, f"{text.strip()} does not hold", _calls if alike else _nothing)

    return trial


def _same(decoder: type[Decoder], reference: type[Decoder], seed: int, attention: str) -> None:
    for draw in range(3):
        requests = random_requests(seed + draw)
        _compare(requests, _run(attention, reference(), requests), _run(attention, decoder(), requests, batch_size=3),
                 f"it differs from its reference {reference.__name__}")  # fmt: skip


def _ideal(decoder: type[Decoder], seed: int, attention: str) -> str:
    """What the rule alone loses on the ideal model, in words; BrokenPromise for a token that it gave probability 0."""
    try:
        found = contradictions(decoder(), attention, seed)
    except RequestError:  # it asks for more than distributions, or for another temperature
        return ""
    if wrong := [one for one in found if not one.possible]:
        raise BrokenPromise(f"it reveals what the ideal model rules out: {wrong[0]}")
    if not found:
        return ""
    return f"it contradicts itself in {len(found)} of {ITEMS} items, first in {found[0]}; `dlmbench limits` measures it"


def no_host_reads(decoder: type[Decoder], attention: str) -> None:
    """A round on tensors without data, flags read at once and late. Raises BrokenPromise where somebody looks at a
    value."""
    known: list[HostRow | None] = [HostRow(), HostRow()]
    for host_rows in (known, None):
        _round_without_data(decoder, attention, host_rows)


def _round_without_data(decoder: type[Decoder], attention: str, host_rows: list[HostRow | None] | None) -> None:
    device = torch.device("meta")
    instance, block = decoder(), block_of(attention)
    nets, counter = tiny_networks(instance, attention, device), Counter(2, device)
    traits = instance.bind(nets, block)
    capacity = 32 + block + 1 + traits.extra_slots
    answer = 16 if traits.scope == "answer" else 0
    reach = max(int(16 * traits.reach), block)
    canvas = canvas_kind(traits)(
        2, capacity, block, MASK, (EOS,), attention, answer, device, traits=traits, reach=reach
    )  # fmt: skip
    for net in nets.values():
        net.allocate(2, capacity, canvas.tokens, counter)
    state = instance.init_state(2, capacity, answer or reach, device)
    view = canvas.view(state, Sampling(), 32, 32, host_rows, False, span=16)
    try:
        decision = instance.round(view, nets)
    except (RuntimeError, NotImplementedError) as error:
        text = str(error).splitlines()[0]
        if "device" in text and "meta" in text and "cpu" in text:
            raise BrokenPromise(f"it mixes devices: make new tensors on view.tokens.device ({text})") from error
        raise BrokenPromise(
            f"it reads a device value on the host, which stalls the device every step ({text})"
        ) from error
    if not isinstance(decision, Decision):
        raise BrokenPromise(f"it returned {type(decision).__name__}, not a Decision")


class _Spy(Decoder):
    """Stands between engine and decoder and looks at every decision."""

    def __init__(self, inner: Decoder):
        self.inner, self.name = inner, inner.name
        self.answer = inner.answer  # type: ignore[method-assign]

    def bind(self, nets: Networks, block_length: int) -> Traits:
        return self.inner.bind(nets, block_length)

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        state = self.inner.init_state(rows, capacity, width, device)
        for name, tensor in state.items():
            if tensor.shape[:1] != (rows,):
                raise BrokenPromise(
                    f"state {name!r} has shape {tuple(tensor.shape)}; its first axis must be the {rows} rows"
                )
        return state

    def round(self, view: View, nets: Networks) -> Decision:
        before = view.tokens.clone()
        decision = self.inner.round(view, nets)
        if not torch.equal(before, view.tokens):
            raise BrokenPromise("it wrote into view.tokens; decisions are returned, the engine carries them out")
        _inspect(view, decision)
        return decision


def _inspect(view: View, decision: Decision) -> None:
    if decision.reveal.dtype != torch.bool or decision.reveal.shape != view.masked.shape:
        raise BrokenPromise(
            f"reveal is {decision.reveal.dtype} {tuple(decision.reveal.shape)}, must be bool {tuple(view.masked.shape)}"
        )
    live = view.live.unsqueeze(1)
    if bool((decision.reveal & ~view.masked & live & (decision.tokens != view.tokens)).any()):
        raise BrokenPromise("it reveals positions that are already committed, with other tokens")
    shown = decision.reveal & view.masked & live
    if bool((shown & (decision.tokens == view.mask_id)).any()):
        raise BrokenPromise("it reveals the mask token itself")
    gained = shown.sum(1)
    replaced = torch.zeros_like(view.live)
    if decision.replace is not None:
        rewritten = decision.replace & ~view.masked & live
        if bool((rewritten & ~view.own).any()):
            raise BrokenPromise("it replaces tokens that were given: a prompt or an answer's fixed positions")
        if bool((rewritten & (decision.tokens == view.mask_id)).any()):
            raise BrokenPromise("it replaces a token with the mask; that is what `remask` is for")
        replaced = replacements(view, decision).any(1)
    if decision.remask is not None:
        lost = decision.remask & ~view.masked & live
        if bool((lost & ~view.own).any()):
            raise BrokenPromise("it remasks positions of the prompt or fixed ones")
        gained = gained - lost.sum(1)
    stuck = view.live & view.masked.any(1) & (gained <= 0) & ~replaced
    if decision.planned_empty is not None:
        stuck = stuck & ~decision.planned_empty
    if decision.finish is not None:
        stuck = stuck & ~decision.finish
    if bool(stuck.any()):
        row = int(stuck.nonzero()[0])
        raise BrokenPromise(
            f"it makes no progress: at step {int(view.step[row])} of a block no (net) reveal in an unfinished row"
        )


# --- tiny networks and items ----------------------------------------------------------------------------------------


def tiny_model(attention: str, seed: int = 7, shift: int = 0) -> Transformer:
    """Two layers with loud random weights, so that confidences spread over the whole range."""
    family = {"causal": "qwen3", "full": "llada"}.get(attention, "sdar")
    config = BackboneConfig(
        family=family, attention=attention, shift=shift or int(attention == "causal"),
        vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16,
        intermediate_size=48, mask_id=MASK, eos_ids=(EOS,), pad_id=0, max_positions=256,
    )  # fmt: skip
    model = Transformer(config).init_weights(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.mul_(8.0 if name == "head.weight" else 5.0)
    return model.requires_grad_(False).eval()


def tiny_networks(decoder: Decoder, attention: str, device: str | torch.device = "cpu") -> dict[str, Network]:
    """A tiny network for every role that `decoder` uses; a head is made by the decoder itself, beside the target."""
    nets: dict[str, Network] = {}
    kind = Bidirectional if attention == "full" else AnchoredNetwork if decoder.anchored else Network
    for i, role in enumerate(decoder.needs(decoder.config, attention)):
        if role == "head":
            nets[role] = decoder.head_network(nets["target"], None)
        elif role == "guide":  # reads left to right whatever the target does
            nets[role] = Network(role, tiny_model("causal", 7 + i).to(device), 1)
        else:
            nets[role] = kind(role, tiny_model(attention, 7 + i, int(decoder.anchored)).to(device), block_of(attention))
    return nets


def traits_of(decoder: Decoder, attention: str) -> Traits:
    """What a decoder is beside tiny networks of that attention."""
    return decoder.bind(tiny_networks(decoder, attention, "meta"), block_of(attention))


def block_of(attention: str) -> int:
    return 1 if attention == "causal" else BLOCK


def random_requests(seed: int, count: int = 6) -> list[Request]:
    """Prompts and budgets of different lengths."""
    rng = random.Random(seed)
    return [
        Request(
            f"item {i}",
            tuple(rng.randrange(4, VOCABULARY) for _ in range(rng.randrange(1, 14))),
            rng.randrange(5, 22),
            seed=i,
        )
        for i in range(count)
    ]


def _run(
    attention: str, decoder: Decoder, requests: list[Request], batch_size: int = 1, lag: int = 0, trace: bool = False
) -> list[Generation]:
    nets = tiny_networks(decoder.inner if isinstance(decoder, _Spy) else decoder, attention)
    engine = Engine(nets, decoder, batch_size=batch_size, lag=lag, stall_limit=8)
    return engine.generate(requests, trace=trace)


def _calls(generation: Generation) -> dict[str, float]:
    """Forwards of the target by kind: what two methods without helpers share; the widths of their views may differ."""
    return {kind: work["calls"] for kind, work in generation.counts["target"].items()}


def _nothing(generation: Generation) -> None:
    """Methods with helpers reach the same ids by other work."""


def _compare(requests, expected, ours, message: str, work=lambda generation: generation.counts) -> None:
    """Same ids and the same `work`."""
    for request, a, b in zip(requests, expected, ours):
        if a.raw_ids != b.raw_ids:
            at = next(
                (i for i, (x, y) in enumerate(zip(a.raw_ids, b.raw_ids)) if x != y), min(len(a.raw_ids), len(b.raw_ids))
            )
            raise BrokenPromise(f"{message}: {request.key}, token {at} of the answer")
        if work(a) != work(b):
            raise BrokenPromise(f"{message}: {request.key} gives the same ids in another number of forwards")


def options_of(decoder: type[Decoder], text: str) -> Options:
    """The decoder's Config from text like "a=1,b=x", values converted to the type of the default."""
    known = {f.name for f in fields(decoder.Config)}
    values = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, value = part.partition("=")
        if name not in known:
            raise BrokenPromise(f"its equality names the option {name!r}, which {decoder.name} does not have")
        values[name] = value
    return options.bind(decoder.Config, values, decoder.name)
