"""`dlmbench bench`: how fast the runtime is on this device, and how much is left."""

from __future__ import annotations

from typing import Annotated

import typer


def bench(
    shape: Annotated[str, typer.Option(help="backbone shape, random weights")] = "nano",
    batch_size: Annotated[str, typer.Option(help="batch sizes, as 1,4,16")] = "1,4,16",
    block_length: Annotated[
        int | None, typer.Option(help="positions decoded together", show_default="8, full attention 32")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="tokens of each prompt")] = 40,
    new_tokens: Annotated[int, typer.Option(help="tokens to generate, end tokens ignored")] = 64,
    lengths: Annotated[
        str, typer.Option(help="full attention: row lengths whose cached and whole forwards are compared")
    ] = "256,512,1024",
    repeats: Annotated[int, typer.Option(help="timed repeats; medians are shown")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16")] = "auto",
    plain: Annotated[bool, typer.Option(help="time the plain transformers loop too")] = True,
    decoders: Annotated[
        bool, typer.Option("--decoders", help="instead: what every decoder adds to its forwards, shipped models")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print the JSON line only")] = False,
) -> None:
    """Time forwards and fixed-length decoding beside a plain transformers loop; a table, then one JSON line."""
    import json as json_module

    import torch

    from dlmbench import options
    from dlmbench.bench.core import Settings, run
    from dlmbench.bench.shapes import shape_of
    from dlmbench.errors import RequestError

    place = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    kind = dtype if dtype != "auto" else ("float32" if place == "cpu" else "bfloat16")
    block = block_length or (32 if shape_of(shape).attention == "full" else 8)
    sizes, rows = (
        tuple(options.convert(part, int, flag) for part in text.split(","))
        for text, flag in ((batch_size, "--batch-size"), (lengths, "--lengths"))
    )
    if min(*sizes, *rows, repeats, new_tokens, prompt_tokens, block) < 1:
        raise RequestError("Batch sizes, lengths and repeats of a bench must be at least 1.")
    if decoders:
        from dlmbench.bench.decoders import run_decoders

        record = run_decoders(max(sizes), repeats)
        if not json:
            _show_decoders(record)
        print(json_module.dumps(record))
        return
    record = run(Settings(shape, place, kind, block, sizes, prompt_tokens, new_tokens, repeats, plain, rows))
    if not json:
        _show(record)
    print(json_module.dumps(record))


def _show(record: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{record['shape']}: {record['parameters'] / 1e6:.1f} M parameters, {record['dtype']} on {record['device']}, "
        f"{record['threads']} threads, torch {record['torch']}\n"
        f"measured copy {record['copy_gb_per_s']:.1f} GB/s, matrix products {record['matmul_gflop_per_s']:.0f} GFLOP/s"
    )
    for show in (_show_cached,) if "cached" in record else (_show_forwards, _show_decoding):
        console.print(show(record, Table))
    for name, value in record["ratios"].items():
        console.print(f"{name}: {value:.2f}x")


def _show_forwards(record: dict, table_class):
    table = table_class(title=f"one forward of a block of {record['block_length']}, head included")
    for name in ("batch", "ms", "of the roofline"):
        table.add_column(name, justify="right")
    for row in record["forwards"]:
        table.add_row(str(row["batch"]), f"{row['ms']:.2f}", f"{row['roofline_share']:.0%}")
    return table


def _show_cached(record: dict, table_class):
    table = table_class(title=f"one forward of one row, blocks of {record['block_length']}, milliseconds")
    for name in ("length", "whole row", "prefix, half-way", "dual"):
        table.add_column(name, justify="right")
    for row in record["cached"]:
        table.add_row(str(row["length"]), *(f"{row[f'{name}_ms']:.2f}" for name in ("none", "prefix", "dual")))
    return table


def _show_decoding(record: dict, table_class):
    table = table_class(title=f"static, one token a step, {record['new_tokens']} new tokens, end tokens ignored")
    for name in ("loop", "batch", "tokens/s", "range", "outside forwards"):
        table.add_column(name, justify="left" if name == "loop" else "right")
    for row in record["decoding"]:
        outside = f"{row['outside_share']:.1%}" if "outside_share" in row else "-"
        spread = f"{row['tokens_per_s_min']:.0f}-{row['tokens_per_s_max']:.0f}"
        table.add_row(row["loop"], str(row["batch"]), f"{row['tokens_per_s']:.0f}", spread, outside)
    return table


def _show_decoders(record: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"every decoder on {record['task']} dev items, batch {record['batch']}, milliseconds a step")
    for name in ("model", "decoder"):
        table.add_column(name)
    for name in ("tok/s", "step", "outside forwards", "outside the backbone"):
        table.add_column(name, justify="right")
    for row in record["decoders"]:
        shares = (f"{row[f'{name}_ms']:.2f} ({row[f'{name}_share']:.1%})" for name in ("outside", "outside_backbone"))
        table.add_row(
            row["model"], row["decoder"], f"{row['tokens_per_s']:.0f}", f"{row['ms_per_step']:.2f}", *shares
        )
    Console().print(table)
