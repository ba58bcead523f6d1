"""docs/definitions.md, made of the texts of the columns; written by ``python -m dlmbench.report.definitions``."""

from __future__ import annotations

from pathlib import Path

from dlmbench.report.columns import COLUMNS, Column
from dlmbench.report.matched import LEGEND

_PAGE = Path(__file__).parents[2] / "docs" / "definitions.md"
_HEAD = """# Definitions

What the columns of the tables hold; the legend below every table is made of the same texts. Numbers are means over
items. *Static* is the row of static decoding with the most forwards, one token a step, among the rows that may be
compared: the same weights, prompts, hardware, and options that are marked so in `dlmbench/request/run_spec.py`. What is
relative to it is a dash where there is none. Kinds of forwards are those of the counter: `prefill`, `denoise`, `store`,
and the names that a decoder gives to its own.
"""


def definitions() -> str:
    """The page."""
    parts = [_HEAD, *map(_entry, (column for column in COLUMNS if column.help)), "## At equal cost\n"]
    parts += [f"**{name}**: {help.removesuffix('.')}.\n" for name, help in LEGEND.items()]
    return "\n".join(parts)


def _entry(column: Column) -> str:
    name = f" (`{column.name}`)" if column.in_csv else ""
    formula = f" *Computed*: {column.formula}." if column.formula else ""
    return f"## {column.title}{name}\n\n{column.help[0].upper()}{column.help[1:]}.{formula}\n"


if __name__ == "__main__":
    _PAGE.write_text(definitions(), encoding="utf-8")
