"""Numbers as texts, the same in every table and sentence; a dash for what is missing."""

from __future__ import annotations

from dlmbench import stats
from dlmbench.request.run_spec import OPTIONS
from dlmbench.runs.record import Rate

DASH = "-"


def number(value: float | None, digits: int = 1) -> str:
    """A number with thousands separated."""
    return DASH if value is None or value != value else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share in percent."""
    return DASH if value is None or value != value else f"{100 * value:.1f}"


def interval(value: float | None, low: float, high: float) -> str:
    """``86.4 [81.6, 90.1]``, in percent."""
    return DASH if value is None or value != value else f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def signed(value: float | None, low: float, high: float) -> str:
    """``-3.2 [-5.6, -0.8]``, in points."""
    if value is None or value != value:
        return DASH
    return f"{stats.points(value, signed=True)} {stats.bracket(low, high, signed=True)}"


def ratio(value: float, low: float, high: float) -> str:
    """``0.52 [0.49, 0.55]``, without the interval where there is none."""
    return number(value, 2) + ("" if low != low else f" [{number(low, 2)}, {number(high, 2)}]")


def rate(found: Rate | None, steady: bool = True) -> str:
    """``1,492 (1,430 - 1,503)``: median, and the range of the repeats; marked where the number of threads had to be
    changed meanwhile. A dash with the range and the reason where the repeats lie too far apart for a number."""
    if found is None:
        return DASH
    middle, why = (DASH, ", unsteady") if found.unsteady else (f"{found.median:,.0f}", "")
    return f"{middle} ({found.low:,.0f} - {found.high:,.0f}{why}){'' if steady else ' ~'}"


def listed(parts: list[str]) -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def told(name: str, value: object) -> str:
    """What tells two rows apart, in words: ``batch 16``, ``top-k 5``, ``120 items``."""
    if name == "items":
        return f"{value} items"
    if name == "prompt_hash":
        return f"prompts {value}"
    word = OPTIONS[name].word if name in OPTIONS else None
    return f"{name.replace('_', '-') if word is None else word} {value}".strip()
