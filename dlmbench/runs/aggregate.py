"""Aggregates of a run from its samples: the numbers of a table row, each by the definition in the module's words.

NFE        forwards of the target after prefill until the row stopped, every kind, per item; stores also shown apart
helpers    the same for draft, guide, reference and head, one number a role
cost       all forwards and passes, prefill too, each at its measured price in plain denoise forwards of the target
tokens     generated, up to and including the first EOS or stop string
TPF        tokens / NFE

Speed is not computed here: it comes from its own pass and is added by the executor. Imports numpy only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dlmbench import stats

HELPER_ROLES = ("draft", "guide", "reference", "head")
SHARES = ("strict", "flexible", "unparsed")  # scores shown beside the accuracy, where a task has them


def aggregate(samples: Sequence[Mapping[str, Any]], prices: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Means, shares and intervals over all samples, in a fixed order whatever order they finished in.

    prices: "role/kind/width" -> price of one call in plain denoise forwards; None leaves the cost out.
    """
    samples = sorted(samples, key=lambda sample: sample["key"])
    items = len(samples)
    accuracy = [float(sample["scores"]["accuracy"]) for sample in samples]
    low, high = stats.mean_interval(accuracy)
    forwards = [calls(sample["counts"], "target") for sample in samples]
    tokens = [sample["tokens"] for sample in samples]
    record: dict[str, Any] = {
        "items": items,
        "accuracy": _mean(accuracy),
        "accuracy_low": low,
        "accuracy_high": high,
        **{name: _share(samples, name) for name in SHARES},
        "cut_off": _mean([sample["stop_reason"] == "length" for sample in samples]),
        "verdicts": dict(sorted(Counter(s["scores"]["verdict"] for s in samples if "verdict" in s["scores"]).items())),
        "nfe": _mean(forwards),
        "store_forwards": _mean([calls(sample["counts"], "target", ("store",)) for sample in samples]),
        "prefills": _mean([calls(sample["counts"], "target", ("prefill",)) for sample in samples]),
        "helpers": _helpers(samples),
        "cost": _cost(samples, prices),
        "flops": _mean([_total(sample["counts"], "flops") for sample in samples]),
        "query_tokens": _mean([_total(sample["counts"], "query_tokens") for sample in samples]),
        "tokens": _mean(tokens),
        "tpf": sum(tokens) / sum(forwards) if sum(forwards) else None,
        "guards": sum(sample["guards"] for sample in samples),
        **_acceptance(samples),
    }
    return record


def calls(counts: Mapping[str, Any], role: str, kinds: Iterable[str] | None = None) -> int:
    """Forwards of one role: of these kinds, or of every kind after prefill."""
    by_kind = counts.get(role, {})
    chosen = kinds if kinds is not None else [kind for kind in by_kind if kind != "prefill"]
    return sum(by_kind[kind]["calls"] for kind in chosen if kind in by_kind)


def price(prices: Mapping[str, float], name: str) -> float | None:
    """Price of "role/kind/width": measured, or on the line between the measured widths of the same role.

    Time of a forward hardly depends on why it is done, so other kinds of the role stand in; beyond the measured widths
    the nearest one counts. None when the role was not measured at all.
    """
    if name in prices:
        return prices[name]
    role, _, width = name.split("/")
    known = sorted(
        {
            int(other.split("/")[2]): value
            for other, value in prices.items()
            if other.split("/")[0] == role and other.split("/")[2].isdigit()
        }.items()
    )
    if not known or not width.isdigit():
        return None
    below = [one for one in known if one[0] <= int(width)] or known[:1]
    above = [one for one in known if one[0] >= int(width)] or known[-1:]
    (low, low_price), (high, high_price) = below[-1], above[0]
    share = (int(width) - low) / (high - low) if high != low else 0.0
    return low_price + share * (high_price - low_price)


def _cost(samples: Sequence[Mapping[str, Any]], prices: Mapping[str, float] | None) -> float | None:
    if not prices:
        return None
    return _mean(item_costs(samples, prices) or [])


def item_costs(samples: Sequence[Mapping[str, Any]], prices: Mapping[str, float]) -> list[float] | None:
    """Cost of each sample, in their order; None when a forward has no price."""
    priced = {name: price(prices, name) for name in sorted({name for sample in samples for name in sample["widths"]})}
    if None in priced.values():
        return None
    return [sum(n * priced[name] for name, n in sorted(sample["widths"].items())) for sample in samples]


def _helpers(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    passes = {role: [calls(sample["counts"], role) for sample in samples] for role in HELPER_ROLES}
    return {role: _mean(values) for role, values in passes.items() if any(values)}


def _acceptance(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accepted share of the proposed draft tokens and the histogram of accepted lengths, for methods that draft."""
    proposed = sum(sample["proposed"] for sample in samples)
    accepted = [length for sample in samples for length in sample["accepted"]]
    if not proposed:
        return {"acceptance": None, "accepted_lengths": {}}
    histogram = {str(length): number for length, number in sorted(Counter(accepted).items())}
    return {"acceptance": sum(accepted) / proposed, "accepted_lengths": histogram}


def _total(counts: Mapping[str, Any], field: str) -> float:
    return sum(kind[field] for role in counts.values() for kind in role.values())


def _share(samples: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [float(sample["scores"][name]) for sample in samples if sample["scores"].get(name) is not None]
    return _mean(values) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if len(values) else None
