"""The goals of a proof beside its figures, as JSON and as one screen. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from dlmbench.bench.proof.stage import FINISHED, NOT_MEASURED, ProofCircumstances, StageRecord

WIDTH, HEIGHT = 100, 40  # of the screen


class GoalRow(TypedDict):
    """A goal beside its figure."""

    goal: str
    bound: float
    at: str  # "least" or "most"
    figure: float | None
    verdict: str


class Summary(ProofCircumstances):
    """All there is to say about a proof."""

    goals: list[GoalRow]
    stages: list[StageRecord]


@dataclass(frozen=True)
class Goal:
    """A figure of a stage and what it is to be: `bound` or more where `least`, else `bound` or less."""

    what: str
    stage: str
    path: tuple[str, ...]
    bound: float
    form: str
    least: bool = True

    def figure(self, records: Mapping[str, StageRecord]) -> float | None:
        value: object = records[self.stage]["figures"]
        for key in self.path:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, int | float) else None

    def met(self, figure: float) -> bool:
        return figure >= self.bound if self.least else figure <= self.bound


GOALS = (  # docs/performance.md says what they are measured with
    Goal("SDAR-8B, one row, block 4: share of the bandwidth", "sdar-8b", ("block_4", "bandwidth_share"), 0.8, "{:.0%}"),
    Goal("SDAR-8B, one row, block 4: wall / device", "sdar-8b", ("block_4", "wall_over_device"), 1.05, "{:.3f}", False),
    Goal("LLaDA-8B, dual cache: ms a step", "llada-8b", ("ms",), 6.0, "{:.2f}", False),
    Goal("SDAR-4B, 128 rows: tokens/s", "sdar-4b", ("fused", "tokens_per_s"), 12_000, "{:,.0f}"),
    Goal("SDAR-4B, 128 rows: fused over separate stores", "sdar-4b", ("fused_over_separate",), 1.2, "{:.2f}"),
    Goal("nano, ten thresholds x 500 problems: seconds", "nano", ("sweep_seconds",), 60, "{:.1f}", False),
)


def summary_of(here: ProofCircumstances, records: Sequence[StageRecord]) -> Summary:
    """Where a proof ran, its stages, and its goals. A figure counts for a goal where it
    was measured on full shapes."""
    by_name = {record["stage"]: record for record in records}
    goals: list[GoalRow] = []
    for goal in GOALS:
        figure = goal.figure(by_name)
        where, verdict = by_name[goal.stage].get("circumstances"), "not measured"
        if figure is not None and where and where["shapes"] == "full":
            verdict = "met" if goal.met(figure) else "missed"
        goals.append({
            "goal": goal.what, "bound": goal.bound, "at": "least" if goal.least else "most", "figure": figure,
            "verdict": verdict,
        })  # fmt: skip
    stages: list[StageRecord] = [{**record, "older": record.get("circumstances", here) != here} for record in records]
    return {**here, "goals": goals, "stages": stages}


def line_of(record: StageRecord) -> str:
    """A stage as a row of a Markdown table."""
    said = [*record["faults"], record["words"]]
    if record.get("older"):
        said.insert(0, "of another source, version or device")
    words = "; ".join(filter(None, said)).replace("|", "/")
    return f"| {record['stage']} | {record['status']} | {record['seconds']:.0f} | {words} |"


def screen_of(summary: Summary) -> str:
    """A summary in Markdown, no wider than `WIDTH` and no longer than `HEIGHT`; what is cut stands in the JSON."""
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    device = f"{summary['device']}, driver {summary['driver']}, CUDA {summary['cuda']}, cuDNN {summary['cudnn']}"
    rows = [
        f"# Proof on {device if summary['driver'] or summary['cuda'] else summary['device']}",
        "",
        f"{versions}.",
        f"commit {summary['commit'] or 'unknown'}, sources {summary['source']}, {summary['shapes']} shapes.",
        "",
        "| goal | is to be | is | |",
        "|---|---|---|---|",
    ]
    for goal, one in zip(GOALS, summary["goals"]):
        bound = f"at {one['at']} {goal.form.format(one['bound'])}"
        figure = "-" if one["figure"] is None else goal.form.format(one["figure"])
        rows.append(f"| {one['goal']} | {bound} | {figure} | {one['verdict']} |")
    rows += ["", "| stage | result | s | what it found |", "|---|---|---|---|"]
    rows += [line_of(record) for record in summary["stages"]]
    good = sum(record["status"] in FINISHED for record in summary["stages"])
    open_ones = [r["stage"] for r in summary["stages"] if r["status"] == NOT_MEASURED]
    left = f"; not measured: {', '.join(open_ones)}" if open_ones else ""
    rows += ["", f"{good} of {len(summary['stages'])} stages ended{left}."]
    return "\n".join(_cut(row) for row in rows[:HEIGHT]) + "\n"


def _cut(row: str) -> str:
    end = " |" if row.startswith("|") else ""
    return row if len(row) <= WIDTH else row[: WIDTH - 1 - len(end)].rstrip() + "…" + end
