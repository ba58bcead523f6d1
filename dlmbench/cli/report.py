"""`dlmbench report`: one HTML file about finished runs, for reading and for passing on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlmbench.analysis.load import Results
from dlmbench.cli import flags
from dlmbench.cli.console import print_json, stdout
from dlmbench.errors import RequestError
from dlmbench.report.answer import answer
from dlmbench.report.latex import choices_of, latex
from dlmbench.report.terminal import print_answer
from dlmbench.stats import MARGIN

if TYPE_CHECKING:
    from dlmbench.analysis.load import Results


def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.", show_default=False)],
    split: Annotated[str, typer.Option(help="test, dev or all.")] = "test",
    out: Annotated[
        Path | None, typer.Option(help="The file to write.", show_default="report.html in the first folder")
    ] = None,
    leaderboard: Annotated[
        bool, typer.Option("--leaderboard", help="Instead one page of tables, of folders from anywhere.")
    ] = False,
    latex: Annotated[
        bool, typer.Option("--latex", help="Also write tables and settings for a paper, as .tex.")
    ] = False,
    max_drop: Annotated[float, typer.Option(help="Points of accuracy that a decoder may lose.")] = 100 * MARGIN,
    json: flags.Json = False,
) -> None:
    """Write the report: summary, figures, tables, every item, and recorded decodings to replay."""
    from dlmbench.report.html import write_report

    if out and out.is_dir():
        raise RequestError(f"--out {str(out)!r} is a folder; name the file, for example {out / 'report.html'}.")
    if not 0 <= max_drop < 100:
        raise RequestError(f"--max-drop is {max_drop:g}; it takes points of accuracy, from 0 to below 100.")
    if leaderboard:
        if latex or split != "test" or max_drop != 100 * MARGIN:
            raise RequestError("--latex, --split and --max-drop are of one report: leave them or --leaderboard out.")
        from dlmbench.report.leaderboard import write_leaderboard

        page = write_leaderboard(folders, out or Path("leaderboard.html"))
        print_json({"file": str(page)}) if json else stdout().print(f"saved   {page}", style="dim", soft_wrap=True)
        return
    results = Results.load(*folders, split=split)
    title, description = _named(folders[0])
    found = answer(results, max_drop / 100)
    path = write_report(results, out or folders[0] / "report.html", title, description, head=found)
    tex = _latex(results, folders, path) if latex else None
    if json:
        print_json({"file": str(path), "latex": tex and str(tex), "rows": len(results.rows), "answer": found.record})
        return

    console = stdout()
    print_answer(console, found)
    names = " and ".join(str(one) for one in (path, tex) if one)
    console.print(f"saved   {names}", style="dim", markup=False, soft_wrap=True)


def _latex(results: Results, folders: list[Path], report: Path) -> Path:
    """Write the tables for a paper beside the report; the path is returned."""
    path = report.with_suffix(".tex")
    path.write_text(latex(results, [choice for folder in folders for choice in choices_of(folder)]), encoding="utf-8")
    return path


def _named(folder: Path) -> tuple[str, str]:
    """Name and description of the sweep that filled `folder`, or the folder's own name."""
    import json as json_module

    place = folder / "sweep.json"
    record = json_module.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    return record.get("name") or folder.resolve().name, record.get("description") or ""
