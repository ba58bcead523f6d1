"""Aggregates of a run from its samples: the numbers of a table row, each by the definition that its field of
`dlmbench.runs.record.Metrics` gives.

Speed is not computed here: it comes from its own pass and is added by the runner. Imports numpy only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import cast

from dlmbench import stats
from dlmbench.forwards import ForwardKey
from dlmbench.runs.record import Metrics, Prices, Sample, Speed, Spreads

HELPER_ROLES = ("draft", "guide", "reference", "head")


def aggregate(samples: Sequence[Sample], prices: Prices | None = None, speed: Speed | None = None) -> Metrics:
    """Means, shares and intervals over all samples, in a fixed order whatever order they finished in.

    prices: of one forward, in plain denoise forwards; None leaves the cost out.
    """
    samples = sorted(samples, key=lambda sample: sample.key)
    accuracy = [sample.accuracy for sample in samples]
    low, high = stats.mean_interval(accuracy)
    counted = all(sample.counted for sample in samples)
    nfe = [calls for sample in samples if (calls := sample.nfe) is not None]
    nfe = nfe if len(nfe) == len(samples) else []
    tokens = [sample.tokens for sample in samples]
    accepted = Counter(length for sample in samples for length in sample.accepted)
    proposed = sum(sample.proposed for sample in samples)
    return Metrics(
        items=len(samples),
        accuracy=_mean(accuracy) or 0.0,
        accuracy_low=low,
        accuracy_high=high,
        strict=_share(samples, "strict"),
        flexible=_share(samples, "flexible"),
        unparsed=_share(samples, "unparsed"),
        cut_off=_mean([sample.stop_reason == "length" for sample in samples]),
        verdicts=_verdicts(samples),
        nfe=_mean(nfe),
        store_forwards=_mean([sample.calls(kinds=("store",)) for sample in samples]) if counted else None,
        prefills=_mean([sample.calls(kinds=("prefill",)) for sample in samples]) if counted else None,
        helpers=_helpers(samples),
        cost=_mean(item_costs(samples, prices) or []) if prices else None,
        flops=_mean([_total(sample, "flops") for sample in samples]) if counted else None,
        query_tokens=_mean([_total(sample, "query_tokens") for sample in samples]) if counted else None,
        tokens=_mean(tokens),
        tpf=sum(tokens) / sum(nfe) if sum(nfe) else None,
        fallbacks=sum(sample.fallbacks for sample in samples) if counted else None,
        acceptance=sum(accepted.elements()) / proposed if proposed else None,
        accepted_lengths={str(length): times for length, times in sorted(accepted.items())} if proposed else {},
        speed=speed,
    )


def price(prices: Prices, forward: ForwardKey) -> float | None:
    """Price of a forward: measured, or on the line between the measured widths of the same role.

    Time of a forward hardly depends on why it is done, so other kinds of the role stand in; beyond the measured widths
    the nearest one counts. None when the role was not measured at all.
    """
    if forward in prices:
        return prices[forward]
    known = sorted(
        {
            int(other.shape): value
            for other, value in prices.items()
            if other.role == forward.role and other.shape.isdigit()
        }.items()
    )
    if not known or not forward.shape.isdigit():
        return None
    width = int(forward.shape)
    below = [one for one in known if one[0] <= width] or known[:1]
    above = [one for one in known if one[0] >= width] or known[-1:]
    (low, low_price), (high, high_price) = below[-1], above[0]
    share = (width - low) / (high - low) if high != low else 0.0
    return low_price + share * (high_price - low_price)


def item_costs(samples: Sequence[Sample], prices: Prices, decoding_alone: bool = False) -> list[float] | None:
    """Cost of each sample, in their order; None when a forward has no price. decoding_alone: without prefill."""
    priced: dict[ForwardKey, float] = {}
    for forward in sorted({forward for sample in samples for forward in sample.forwards}):
        if decoding_alone and forward.kind == "prefill":
            priced[forward] = 0.0
            continue
        found = price(prices, forward)
        if found is None:
            return None
        priced[forward] = found
    return [sum(n * priced[forward] for forward, n in sorted(sample.forwards.items())) for sample in samples]


def cost_interval(samples: Sequence[Sample], prices: Prices, spreads: Spreads) -> tuple[float, float] | None:
    """95 % interval of the mean cost of decoding: the items might have been others, and prices were measured.

    Normal for the items; prices count as all at their lower, or all at their upper ends; the two are independent of
    each other. None when a forward has no price.
    """
    ends = [{forward: spreads.get(forward, (one, one))[end] for forward, one in prices.items()} for end in (0, 1)]
    costs = item_costs(samples, prices, decoding_alone=True)
    low, high = (item_costs(samples, end, decoding_alone=True) for end in ends)
    if not costs or not low or not high:
        return None
    centre, lowest, highest = (sum(each) / len(each) for each in (costs, low, high))
    half = stats.normal_half(costs)
    return centre - math.hypot(half, centre - lowest), centre + math.hypot(half, highest - centre)


def _verdicts(samples: Sequence[Sample]) -> dict[str, int]:
    found = Counter(str(sample.scores["verdict"]) for sample in samples if "verdict" in sample.scores)
    return dict(sorted(found.items()))


def _helpers(samples: Sequence[Sample]) -> dict[str, float]:
    passes = {role: [sample.calls(role) for sample in samples] for role in HELPER_ROLES}
    return {role: sum(numbers) / len(numbers) for role, numbers in passes.items() if any(numbers)}


def _total(sample: Sample, measure: str) -> float:
    return sum(getattr(work, measure) for kinds in sample.counts.values() for work in kinds.values())


def _share(samples: Sequence[Sample], name: str) -> float | None:
    return _mean([float(cast(float, s.scores[name])) for s in samples if s.scores.get(name) is not None])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if len(values) else None
