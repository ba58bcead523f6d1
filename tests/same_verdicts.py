"""Do two folders of runs say the same? Verdicts that must not depend on the machine, row by row.

    python tests/same_verdicts.py ONE TWO        (make two-threads RECIPE=... makes both, with one thread and with two)

Compared are *pays?* and the verdicts of the paired differences, which follow from counts and ids; for information also
whether the measured cost is below static's, which does not. Runs are matched by their key. Exit code 1 where a verdict
differs, and where no row is in both.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from dlmbench.analysis.load import Results
from dlmbench.analysis.row import Row


def verdicts(row: Row) -> dict[str, str | None]:
    """What a table says of a row, by name."""
    return {"pays?": row.group.pays(row), **{f"vs {name}": one.verdict for name, one in row.against.items()}}


def cheaper(row: Row) -> bool | None:
    """Is its measured cost below that of static?"""
    share = row.group.relative(row, lambda one: one.cost)
    return None if share is None or row is row.group.reference else share < 1


def differing(first: Mapping[str, Row], second: Mapping[str, Row]) -> list[str]:
    """A sentence for each verdict that is another in the second."""
    found = []
    for key in first.keys() & second.keys():
        ours, theirs = verdicts(first[key]), verdicts(second[key])
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                row = first[key]
                place = f"{row.task}, {row.model}, {row.label}"
                found.append(f"{place}: {name} is {ours.get(name)!r} in one and {theirs.get(name)!r} in the other")
    return sorted(found)


def main(one: str, two: str) -> int:
    first, second = ({row.key: row for row in Results.load(folder, split="test").rows} for folder in (one, two))
    both = first.keys() & second.keys()
    for sentence in (found := differing(first, second)):
        print(sentence)
    moved = [first[key].label for key in both if cheaper(first[key]) != cheaper(second[key])]
    print(f"{len(both)} rows in both ({len(first.keys() ^ second.keys())} in one alone), {len(found)} verdicts differ")
    if moved:
        print(f"cheaper than static by measured cost in one alone: {', '.join(sorted(moved))}")
    return int(bool(found) or not both)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
