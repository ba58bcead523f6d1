"""What selectors would have revealed in the recorded states of a run, and how that differs from what was revealed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dlmbench.decoders.base import Decoder, Options
from dlmbench.errors import RequestError
from dlmbench.lab.replay import Replay, Revealed, left_out
from dlmbench.models.presets import PRESETS
from dlmbench.registry import DECODERS
from dlmbench.request import RunSpec, options
from dlmbench.request.values import parse_assignments
from dlmbench.runs import RunFolder
from dlmbench.runs.states import Facts, RecordedItem, States, read_states


@dataclass(frozen=True)
class Selector:
    """A method at a setting, and its decoder; `left_out` says why it cannot be shown the states, None where it can.
    `recorded`: it made the run."""

    label: str
    decoder: Decoder
    left_out: str | None = None
    recorded: bool = False


@dataclass(frozen=True)
class OtherToken:
    """The first commit of an item that differs from its final text: in which step (from 0) of how many, at which
    position of the answer (from 0), and both tokens."""

    item: str
    step: int
    steps: int
    position: int
    token: int
    final: int


@dataclass
class Tally:
    """What a selector does in the recorded states of some items. `same` counts the `steps` in which it reveals exactly
    what was revealed; `both` and `either` positions that both reveal, and one of the two; `commits` are its reveals,
    `other` those within the final text that differ from it."""

    selector: Selector
    steps: int = 0
    same: int = 0
    both: int = 0
    either: int = 0
    commits: int = 0
    other: int = 0
    first: dict[str, OtherToken] = field(default_factory=dict)

    @property
    def agreement(self) -> float:
        """Share of the steps with exactly the recorded choice."""
        return self.same / max(self.steps, 1)

    @property
    def overlap(self) -> float:
        """Positions that both reveal over those that one of the two does."""
        return self.both / max(self.either, 1)

    @property
    def tokens_per_step(self) -> float:
        return self.commits / max(self.steps, 1)

    @property
    def other_share(self) -> float:
        """Share of its reveals that differ from the final text."""
        return self.other / max(self.commits, 1)

    @property
    def earliest(self) -> OtherToken | None:
        return min(self.first.values(), key=lambda one: (one.step, one.item), default=None)

    def see(self, item: RecordedItem, number: int, choice: Revealed) -> None:
        """Count one state of an item."""
        state = item.states[number]
        recorded = set(state.positions[state.chosen].tolist())
        final = {item.prompt_length + at: token for at, token in enumerate(item.ids[: item.text_length])}
        self.steps += 1
        self.same += recorded == choice.tokens.keys()
        self.both += len(recorded & choice.tokens.keys())
        self.either += len(recorded | choice.tokens.keys())
        self.commits += len(choice.tokens)
        for position, token in sorted(choice.tokens.items()):
            if token != final.get(position, token):
                self.other += 1
                at = position - item.prompt_length
                found = OtherToken(item.key, number, len(item.states), at, token, final[position])
                self.first.setdefault(item.key, found)


def laboratory(run: RunFolder, wanted: Sequence[str] = ()) -> tuple[list[Tally], list[Selector]]:
    """Show a run's recorded states to the method that made them and to the selectors `wanted` ("threshold:tau=0.8"), or
    to every method at its defaults -> tallies in this order, and the selectors that were left out.

    Raises RequestError for a wanted selector that does not exist, and RunError for a run without recorded logits.
    """
    states, spec = read_states(run.path), run.manifest.spec
    texts = list(wanted) or [name for name in DECODERS.names() if name != spec.method]
    selectors = [replace(_selector(spec, states.facts), recorded=True)]
    selectors += [selector_of(text, spec, states.facts) for text in texts]
    return tallies(states, [one for one in selectors if not one.left_out]), [one for one in selectors if one.left_out]


def tallies(states: States, selectors: Sequence[Selector]) -> list[Tally]:
    """What each selector does in the states; a row is over for a selector that would end it."""
    replay, found = Replay(states), [Tally(selector) for selector in selectors]
    for item in states.items:
        going = [True] * len(found)
        for number, choices in enumerate(replay.choices([one.decoder for one in selectors], item)):
            for at, (tally, choice) in enumerate(zip(found, choices)):
                if going[at]:
                    tally.see(item, number, choice)
                    going[at] = not choice.ends
    return found


def selector_of(text: str, spec: RunSpec, facts: Facts) -> Selector:
    """A selector from ``method`` or ``method:option=value:option=value``, on the model of the run `spec`; an option
    called threshold is the method's threshold, whatever its own name."""
    method, *given = text.split(":")
    own = parse_assignments([f"{method}.{pair}" for pair in given]).get(method, {})
    name = options.threshold_field(DECODERS.get(method).Config)
    if name and name not in own and "threshold" in own:
        own = {**own, name: own["threshold"]}
        del own["threshold"]
    return _selector(replace(spec, method=method, threshold=None, settings={method: own}), facts)


def _selector(spec: RunSpec, facts: Facts) -> Selector:
    method, preset = spec.method, PRESETS.get(spec.model)
    decoder, own = DECODERS.get(method), dict(preset.settings.get(method, {}) if preset else {})
    own |= spec.settings.get(method, {})
    if spec.threshold is not None and (name := options.threshold_field(decoder.Config)):
        own[name] = spec.threshold
    config: Options = options.bind(decoder.Config, own, method)
    reason = left_out(decoder(config), facts, spec.cache)
    try:
        config = config if reason else decoder.on_task(config, facts.attention, None, False)
    except RequestError as error:
        reason = str(error)
    return Selector(options.label(method, config), decoder(config), reason)
