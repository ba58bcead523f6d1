"""`dlmbench run`: one method on one task, with its baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dlmbench.cli import flags
from dlmbench.cli.console import Bars, print_json, print_notes, stdout


def run(
    method: Annotated[str, typer.Option(help="Decoding method; see dlmbench list methods.")],
    task: Annotated[str, typer.Option(help="Task; see dlmbench list tasks.")],
    model: Annotated[str | None, typer.Option(help="Preset, folder or hub name.", show_default="nano")] = None,
    like: flags.Like = None,
    threshold: Annotated[float | None, typer.Option(help="Value of the method's knob.")] = None,
    set_: flags.Set = None,
    against: flags.Against = "static,threshold",
    limit: Annotated[int | None, typer.Option(help="First N items only.")] = None,
    split: Annotated[str, typer.Option(help="test reports, dev chooses settings.")] = "test",
    draft: flags.Draft = None,
    guide: flags.Guide = None,
    reference: flags.Reference = None,
    head: flags.Head = None,
    block_length: Annotated[int | None, typer.Option(help="Positions a block.", show_default="by model")] = None,
    gen_length: Annotated[int | None, typer.Option(help="Most tokens an item.", show_default="by task")] = None,
    cache: Annotated[str, typer.Option(help="none, prefix, dual, freecache, prompt (bidirectional).")] = "none",
    store: Annotated[str, typer.Option(help="fused, or separate: an extra forward a block.")] = "fused",
    num_fewshot: Annotated[int | None, typer.Option(help="Worked examples.", show_default="by task")] = None,
    chat_template: flags.ChatTemplate = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="1 keeps all.")] = 1.0,
    batch_size: Annotated[str, typer.Option(help="Rows decoded together.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    data_dir: flags.DataDir = None,
    out: flags.Out = None,
    traces: flags.Traces = flags.TRACED,
    plugin: flags.Plugin = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print cost and what is missing, and stop.")] = False,
    json: flags.Json = False,
) -> None:
    """Run one method on one task, with its baselines. The same command resumes it."""
    given = flags.given(locals())
    from dlmbench.request import RunSpec
    from dlmbench.request.options import parse_assignments

    spec = RunSpec(settings=parse_assignments(given.pop("set", ())), **given)
    cells, notes = cells_with_baselines(spec)
    print_notes(notes)
    if dry_run:
        from dlmbench.cli.plan import print_plan

        print_plan(cells[0].label, cells, traces, json)
        return
    frame, facts = _execute(cells, traces)
    saved = Path(spec.out) / facts["folder"]
    if json:
        rows = sorted(frame.to_dict("records"), key=lambda row: row["key"] != facts["key"])
        print_json({"run": rows[0], "baselines": rows[1:], "saved": str(saved)})
        return
    from dlmbench.report.screen import print_run

    print_run(stdout(), frame, facts["key"], saved, facts)


def cells_with_baselines(spec: Any) -> tuple[list[Any], list[str]]:
    """The checked cell of `spec`, then its baselines that are other runs; and the notes for the user."""
    ours = spec.check()
    cells, notes = [ours], list(ours.notes)
    for baseline in spec.baselines():
        cell = baseline.check()
        if cell.same_cell() not in [other.same_cell() for other in cells]:
            cells.append(cell)
    if spec.against and not spec.baselines():
        notes.append(
            f"{spec.model} is autoregressive, so {' and '.join(spec.against)} cannot run on its weights: "
            "no baseline. A sweep shows it beside diffusion models."
        )
    return cells, notes


def _execute(cells: list[Any], traces: int) -> tuple[Any, dict[str, Any]]:
    """Run the cells; their table, and what the screen shows about the first of them."""
    from dlmbench.report.table import table
    from dlmbench.runs.local import Local

    with Bars(len(cells)) as bars:
        folders = Local(progress=bars, traces=traces).run(cells)
    manifest = folders[0].manifest()
    model = manifest["model"]
    facts = {
        "key": manifest["key"],
        "folder": folders[0].name,
        "file_dtype": model["file_dtype"],
        "parameters": model["parameters"],
        "prices": manifest["calibration"]["prices"],
    }
    return table(folders), facts
