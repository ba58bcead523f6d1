"""Sweep the confidence threshold of a real 0.6B block-diffusion model and draw its front of accuracy against cost.

    python examples/sweep_small_model.py --limit 20
    python examples/sweep_small_model.py --model FOLDER --data-dir FOLDER --dtype bfloat16

The model (1.2 GB) and GSM8K come from the hub, or from folders. Started again, it goes on where it was stopped, and
reads finished settings instead of making them again. Writes table and figure to --out and prints the figure's points.
"""

import argparse

from dlmbench.analysis.load import Results
from dlmbench.report.figures.pareto import plot
from dlmbench.report.summary import write_table
from dlmbench.request import SweepSpec
from dlmbench.runs.local import LocalRunner
from dlmbench.runs.sweep import run_sweep


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Sweep the threshold of a small real model.")
    parser.add_argument("--model", default="qwen3-0.6b-bd3lm", help="preset, folder or hub name")
    parser.add_argument("--thresholds", default="0.5:0.9:0.1", help="first:last:step, or a,b,c")
    parser.add_argument("--task", default="gsm8k")
    parser.add_argument("--data-dir", help="folder with gsm8k/test.jsonl, instead of the hub")
    parser.add_argument("--limit", type=int, default=20, help="items a setting")
    parser.add_argument("--gen-length", type=int, help="most tokens an item; the preset's is 256")
    parser.add_argument("--dtype", default="auto", help="auto is float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--out", default="runs/small-model")
    return parser.parse_args()


def main() -> None:
    given = vars(arguments())
    flags = {"method": "static,threshold", "threshold": given.pop("thresholds"), "num_fewshot": 0, **given}
    sweep = SweepSpec.from_flags({name: value for name, value in flags.items() if value is not None})
    runner = LocalRunner()
    runs, notes = sweep.resolve(runner.machine)
    print(*notes, sep="\n")
    results = Results(run_sweep(sweep, runs, runner).folders)
    for row in results.rows:
        speed = f"   tok/s {row.tps:6.1f}" if row.tps else ""
        print(f"{row.label:24} accuracy {row.accuracy:6.1%}   forwards an item {row.nfe:6.1f}{speed}")
    for path in [*write_table(results, sweep.out, "A small model"), *plot(results.rows, sweep.out)]:
        print(path)


if __name__ == "__main__":
    main()
