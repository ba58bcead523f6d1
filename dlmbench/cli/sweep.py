"""`dlmbench sweep`: many cells from a recipe or from flags, a table and a figure at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from dlmbench.cli import flags
from dlmbench.cli.console import Bars, print_json, print_notes, stdout
from dlmbench.resources import recipe_folders

_RANGE = "0.3:0.95:0.05"
Text = str | None


def sweep(
    recipe: Annotated[
        Text, typer.Argument(help="Recipe file or name; flags override what it says.", show_default=False)
    ] = None,
    method: Annotated[Text, typer.Option(help="Methods a,b; with a recipe: only these of it.")] = None,
    task: Annotated[Text, typer.Option(help="Tasks t,u; with a recipe: only these of it.")] = None,
    model: Annotated[Text, typer.Option(help="Models.")] = None,
    like: flags.Like = None,
    threshold: Annotated[Text, typer.Option(help=f"Values of the knob, as list or range {_RANGE}.")] = None,
    set_: flags.Set = None,
    against: Annotated[
        Text, typer.Option(help="Baselines that come along, or none.", show_default="static,threshold")
    ] = None,
    limit: Annotated[Text, typer.Option(help="First N items only.")] = None,
    split: Annotated[Text, typer.Option(help="test reports, dev chooses settings.", show_default="test")] = None,
    draft: flags.Draft = None,
    guide: flags.Guide = None,
    reference: flags.Reference = None,
    head: flags.Head = None,
    block_length: Annotated[Text, typer.Option(help="Positions decoded together.")] = None,
    gen_length: Annotated[Text, typer.Option(help="Most tokens an item.")] = None,
    cache: Annotated[Text, typer.Option(help="Cache policies.")] = None,
    store: Annotated[Text, typer.Option(help="fused, separate.")] = None,
    num_fewshot: Annotated[Text, typer.Option(help="Worked examples.")] = None,
    chat_template: flags.ChatTemplate = None,
    temperature: Annotated[Text, typer.Option(help="0 is greedy.")] = None,
    top_k: Annotated[Text, typer.Option(help="0 keeps all.")] = None,
    top_p: Annotated[Text, typer.Option(help="1 keeps all.")] = None,
    batch_size: Annotated[Text, typer.Option(help="Rows decoded together.")] = None,
    device: Annotated[Text, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[Text, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    seed: Annotated[Text, typer.Option(help="Seeds.")] = None,
    data_dir: flags.DataDir = None,
    out: flags.Out = None,
    traces: flags.Traces = flags.TRACED,
    plugin: flags.Plugin = None,
    tune_on: Annotated[Text, typer.Option(help="dev: choose each method's setting there, report on test.")] = None,
    executor: Annotated[str, typer.Option(help="local: here, one by one; ray: many at once on a cluster.")] = "local",
    address: Annotated[Text, typer.Option(help="Ray cluster (host:port, auto); default: one started here.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan, cost and what is missing, and stop.")] = False,
    json: flags.Json = False,
) -> None:
    """Run many settings, then write table and figure. The same command resumes it."""
    given = flags.given(locals())
    from dlmbench.errors import RequestError
    from dlmbench.request import SweepSpec

    if executor not in ("local", "ray"):
        raise RequestError(f"--executor is {executor!r}; it takes local or ray.")
    if address and executor != "ray":
        raise RequestError("--address belongs to --executor ray.")
    if executor == "ray":
        from dlmbench.runs.pool import require_ray

        require_ray()
    spec = SweepSpec.from_recipe(find_recipe(recipe), given) if recipe else SweepSpec.from_flags(given)
    cells, notes = spec.checked()
    print_notes([*notes, *_tries(spec, cells)])
    if dry_run:
        from dlmbench.cli.plan import print_plan
        from dlmbench.runs.sweep import planned_cells

        print_plan(spec.name, planned_cells(spec, cells), traces, json, spec.tune_on)
        return
    _execute(spec, cells, _Executor(executor, address, traces), json)


def _tries(spec: Any, cells: list[Any]) -> list[str]:
    from dlmbench.runs.sweep import tries

    return tries(cells) if spec.tune_on else []


def find_recipe(name: str) -> Path:
    """A recipe by path, or by name among `recipe_files`; the path as it was given when there is none."""
    path = Path(name)
    if path.is_file() or path.suffix:
        return path
    return next((found for found in recipe_files() if found.stem == name), path)


def recipe_files() -> list[Path]:
    """Recipes below ./recipes, then those that dlmbench came with."""
    found: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted(folder.glob("**/*.yaml")):
            found.setdefault(path.stem, path)
    return list(found.values())


class _Executor(NamedTuple):
    """Which executor, as the user asked for it."""

    name: str
    address: str | None
    traces: int

    @contextmanager
    def running(self, bars: Bars) -> Iterator[Any]:
        """The executor, for as long as it is needed."""
        if self.name == "local":
            from dlmbench.runs.local import Local

            yield Local(progress=bars, traces=self.traces)
            return
        from dlmbench.runs.pool import Pool
        from dlmbench.runs.ray import Cluster

        with Pool(self.address) as pool:
            cluster = Cluster(pool, bars, self.traces)
            yield cluster
        if cluster.lost:
            print_notes([f"Workers lost at work: {cluster.lost}. What they were at was done by others."])


def _execute(spec: Any, cells: list[Any], executor: _Executor, json: bool) -> None:
    from dlmbench.report.curves import groups, matched_markdown
    from dlmbench.report.html import write_report
    from dlmbench.report.pareto import plot
    from dlmbench.report.screen import print_paragraphs, print_sweep
    from dlmbench.report.seeds import over_seeds, seeds_markdown
    from dlmbench.report.summary import paragraphs
    from dlmbench.report.table import table, write_table
    from dlmbench.runs.sweep import run_sweep

    with Bars(len(cells) * (2 if spec.tune_on else 1)) as bars, executor.running(bars) as runner:
        swept = run_sweep(spec, cells, runner)
    frame = table(swept.folders)
    sentences = [*(choice.sentence for choice in swept.choices), *_tries(spec, cells)]
    tail = "\n\n".join([matched_markdown(groups(swept.folders)), seeds_markdown(over_seeds(swept.folders))]).strip()
    written = write_table(frame, spec.out, spec.name, sentences, tail) + plot(frame, spec.out)
    place = Path(spec.out) / "report.html"
    written.append(write_report(frame, swept.folders, place, spec.name, spec.description, sentences))
    if json:
        print_json(
            {
                "name": spec.name,
                "rows": frame.to_dict("records"),
                "choices": sentences,
                "summary": dict(paragraphs(frame)),
                "files": [str(path) for path in written],
            }
        )
        return
    console = stdout()
    print_sweep(console, frame)
    for sentence in sentences:
        console.print(sentence, markup=False, soft_wrap=True)
    print_paragraphs(console, paragraphs(frame))
    console.print(f"saved   {', '.join(path.name for path in written)} in {spec.out}", style="dim", soft_wrap=True)
