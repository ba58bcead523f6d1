"""`dlmbench sweep`: many runs from a recipe or from flags, a table and a figure at the end."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlmbench.analysis.load import Results
from dlmbench.cli import flags
from dlmbench.cli.console import Bars, print_json, print_notes, stdout
from dlmbench.cli.plan import print_plan
from dlmbench.cli.served import all_served, method_of, served_runner
from dlmbench.cli.served import sentences as beside
from dlmbench.errors import RequestError
from dlmbench.files import Json
from dlmbench.report.answer import answer
from dlmbench.report.columns import record
from dlmbench.report.markdown import write_table
from dlmbench.report.terminal import print_answer
from dlmbench.request import SweepSpec
from dlmbench.request.resolved import Anywhere
from dlmbench.request.run_spec import OPTIONS
from dlmbench.resources import recipe_folders
from dlmbench.runs.local import LocalRunner
from dlmbench.runs.pool import Pool, require_ray
from dlmbench.runs.ray import RayRunner
from dlmbench.runs.sweep import Swept, planned_runs, run_sweep, tries

if TYPE_CHECKING:
    from dlmbench.runs.runner import Runner

Text = str | None


@flags.takes_options(many=OPTIONS)
def sweep(
    given: dict[str, Json],
    recipe: Annotated[
        Text, typer.Argument(help="Recipe file or name; flags override what it says.", show_default=False)
    ] = None,
    traces: flags.Traces = flags.TRACED,
    record_logits: flags.RecordLogits = 0,
    tune_on: Annotated[Text, typer.Option(help="dev: choose each method's setting there, report on test.")] = None,
    dev_limit: Annotated[
        int | None, typer.Option(min=1, help="Items of a trial on dev.", show_default="as many as are reported on")
    ] = None,
    executor: Annotated[str, typer.Option(help="local: here, one by one; ray: many at once on a cluster.")] = "local",
    address: Annotated[Text, typer.Option(help="Ray cluster (host:port, auto); default: one started here.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan, cost and what is missing, and stop.")] = False,
    json: flags.Json = False,
) -> None:
    """Run many settings, then write table and figure. The same command resumes it.

    Options take lists a,b and ranges 0.3:0.95:0.05; with a recipe, --method and --task choose among those it names.
    """
    if executor not in ("local", "ray"):
        raise RequestError(f"--executor is {executor!r}; it takes local or ray.")
    if address and executor != "ray":
        raise RequestError("--address belongs to --executor ray.")
    if record_logits and executor == "ray":
        raise RequestError("--record-logits is not built for --executor ray: record with the local one.")
    if executor == "ray":
        require_ray()
    given |= {name: value for name, value in (("tune_on", tune_on), ("dev_limit", dev_limit)) if value}
    if "server" in given and not recipe:
        given["method"] = method_of(given)
    spec = SweepSpec.from_recipe(find_recipe(recipe), given) if recipe else SweepSpec.from_flags(given)
    served = all_served(spec.runs, dry_run=dry_run, elsewhere=executor == "ray", logits=record_logits)
    if served and spec.tune_on:
        raise RequestError("--tune-on chooses settings, and those of a server are its own: leave one of them out.")
    runner = LocalRunner(traces=traces, logits=record_logits)
    here = executor == "local" and not dry_run
    runs, notes = spec.resolve(runner.machine if here else Anywhere())
    sentences = tries(runs) if spec.tune_on else []
    print_notes([*notes, *sentences])
    if dry_run:
        print_plan(spec.name, planned_runs(spec, runs), runner, json, spec.tune_on)
        return
    with Bars(len(planned_runs(spec, runs))) as bars:
        if served:
            swept = run_sweep(spec, runs, served_runner(bars))
        else:
            with _on(executor, address, runner, bars) as chosen:
                swept = run_sweep(spec, runs, chosen)
    _write(spec, swept, sentences, json)


def find_recipe(name: str) -> Path:
    """A recipe by path, or by name among `recipe_files`; the path as it was given when there is none."""
    path = Path(name)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    return next((found for found in recipe_files() if found.stem == name), path)


def recipe_files() -> list[Path]:
    """Recipes below ./recipes, then those that dlmbench came with."""
    found: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted(folder.glob("**/*.yaml")):
            found.setdefault(path.stem, path)
    return list(found.values())


@contextmanager
def _on(executor: str, address: str | None, local: LocalRunner, bars: Bars) -> Iterator[Runner]:
    """The runner that was asked for, for as long as it is needed."""
    if executor == "local":
        local.progress = bars
        yield local
        return
    with Pool(address) as pool:
        cluster = RayRunner(pool, bars, local.traces)
        yield cluster
    if cluster.lost:
        print_notes([f"Workers lost at work: {cluster.lost}. What they were at was done by others."])


def _write(spec: SweepSpec, swept: Swept, tried: list[str], json: bool) -> None:
    """Table, figure and report of a finished sweep, and what the terminal shows of them."""
    from dlmbench.report.figures.pareto import plot
    from dlmbench.report.html import write_report

    results = Results(swept.folders)
    sentences = [*(choice.sentence for choice in swept.choices), *tried]
    served = any(run.served for run in spec.runs)
    if served:
        found = beside(results, spec.runs[0].against)
        sentences += [f"{row.label}, {row.batch_size} at a time: {one}." for row in found for one in found[row]]
    lost = _folders_in(Path(spec.out) / "table.csv") - {row.run.name for row in results.rows}
    written = write_table(results, spec.out, spec.name, sentences)
    written += plot(results.rows, spec.out, x="tps_end_to_end" if served else "cost")
    written.append(write_report(results, Path(spec.out) / "report.html", spec.name, spec.description, sentences))
    if json:
        print_json(
            {
                "name": spec.name,
                "rows": [record(row) for row in results.rows],
                "choices": sentences,
                "answer": answer(results).record,
                "files": [str(path) for path in written],
            }
        )
        return
    console = stdout()
    print_answer(console, answer(results))
    console.print(f"saved   {', '.join(path.name for path in written)} in {spec.out}", style="dim", soft_wrap=True)
    if lost:
        others = f"{len(lost)} row{'s' * (len(lost) > 1)} of another sweep, whose runs are still there"
        console.print(f"note    the tables before had {others}: dlmbench report {spec.out} shows all.", soft_wrap=True)


def _folders_in(table: Path) -> set[str]:
    """The run folders that a table.csv names."""
    if not table.is_file():
        return set()
    with open(table, encoding="utf-8", newline="") as stream:
        return {row.get("folder", "") for row in csv.DictReader(stream)}
