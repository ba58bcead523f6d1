"""Do two folders of runs hold the same rows? Accuracy, NFE, passes of helpers and the ids of every item.

    python tests/same_rows.py BEFORE AFTER

Runs are matched by their key. Speed and prices are not compared: they come from a clock. Exit code 1 for a difference.
"""

import sys

from dlmbench.runs import RunFolder, find_runs


def content(run: RunFolder) -> dict:
    """What must be the same, whatever made it."""
    metrics = run.metrics
    return {
        "accuracy": metrics.accuracy,
        "NFE": metrics.nfe,
        "stores": metrics.store_forwards,
        "helpers": metrics.helpers,
        "ids": {sample.key: list(sample.ids) for sample in run.samples},
        "counts": {sample.key: sample.forwards for sample in run.samples},
    }


def main(before: str, after: str) -> int:
    runs = [{run.key: run for run in find_runs(root) if run.finished} for root in (before, after)]
    alone = [key for key in runs[0].keys() ^ runs[1].keys()]
    for key in alone:
        run = runs[0].get(key) or runs[1][key]
        print(f"only in {before if key in runs[0] else after}: {run.name} ({run.manifest.label})")
    different = 0
    for key in runs[0].keys() & runs[1].keys():
        first, second = content(runs[0][key]), content(runs[1][key])
        names = [name for name in first if first[name] != second[name]]
        different += bool(names)
        if names:
            print(f"{runs[0][key].name} ({runs[0][key].manifest.label}): {', '.join(names)} differ")
    both = len(runs[0].keys() & runs[1].keys())
    print(f"{both} runs in both, {different} different, {len(alone)} in one alone")
    return int(bool(different or alone or not both))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
