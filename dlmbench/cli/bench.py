"""`dlmbench bench`: how fast the runtime is on this device, and how much is left."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from dlmbench.errors import RequestError
from dlmbench.models.shapes import shape_of
from dlmbench.request import values
from dlmbench.request.resolved import Machine, dtype_on


def bench(
    shape: Annotated[str, typer.Option(help="backbone shape, random weights")] = "nano",
    batch_size: Annotated[str, typer.Option(help="batch sizes, as 1,4,16")] = "1,4,16",
    block_length: Annotated[
        int | None, typer.Option(help="positions decoded together", show_default="8, full attention 32")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="tokens of each prompt")] = 40,
    new_tokens: Annotated[
        int, typer.Option(help="tokens to generate, end tokens ignored; 0 times forwards alone")
    ] = 64,
    lengths: Annotated[
        str, typer.Option(help="full attention: row lengths whose cached and whole forwards are compared")
    ] = "256,512,1024",
    contexts: Annotated[
        str, typer.Option(help="keys that timed forwards see, as 128,512,2048; several also fit how time grows")
    ] = "",
    repeats: Annotated[int, typer.Option(help="timed repeats; medians are shown")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16")] = "auto",
    plain: Annotated[bool, typer.Option(help="time the plain transformers loop too")] = True,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="transformers' forward compiled by torch too (CPU: a minute, a compiler)")
    ] = False,
    cudnn: Annotated[bool, typer.Option("--cudnn", help="let cuDNN compute attention on CUDA, to compare")] = False,
    decoders: Annotated[
        bool, typer.Option("--decoders", help="instead: what every decoder adds to its forwards, shipped models")
    ] = False,
    busy: Annotated[
        str, typer.Option(help="instead: forwards beside so many processes that want a core each, as 1,4 (CPU)")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="folder for the JSON, and for the growth picture")] = None,
    json: Annotated[bool, typer.Option("--json", help="print the JSON line only")] = False,
) -> None:
    """Time forwards and fixed-length decoding beside a plain transformers loop; a table, then one JSON line."""
    import json as json_module

    place = Machine().device(values.device(device, "device"))
    kind = dtype_on(place, dtype)
    block = block_length or shape_of(shape).block_length or (32 if shape_of(shape).attention == "full" else 8)
    sizes, rows, keys, loads = (
        tuple(values.convert(part, int, flag) for part in text.split(",") if text)
        for text, flag in (
            (batch_size, "--batch-size"),
            (lengths, "--lengths"),
            (contexts, "--contexts"),
            (busy, "--busy"),
        )
    )
    if min(*sizes, *rows, *keys, *loads, repeats, prompt_tokens, block) < 1 or new_tokens < 0:
        raise RequestError("Batch sizes, lengths, loads and repeats of a bench must be at least 1, new tokens 0.")
    if loads and (place != "cpu" or shape_of(shape).attention == "full"):
        raise RequestError(
            "--busy times block-causal forwards on the CPU, whose threads it is about: leave --device out, or take "
            "another --shape."
        )
    if keys and shape_of(shape).attention == "full":
        raise RequestError(f"--contexts times forwards of a block, and {shape} has full attention: take --lengths.")
    if compiled and (place != "cpu" or not plain or shape_of(shape).attention == "full" or shape_of(shape).experts):
        raise RequestError(
            "--compiled is for the forwards of transformers' Qwen3 that are timed on the CPU beside ours (on a GPU its "
            "loop is always compiled): leave it out."
        )
    if decoders:
        from dlmbench.bench.decoders import run_decoders

        record, show = run_decoders(max(sizes), repeats), _show_decoders
    elif loads:
        from dlmbench.bench.busy import run_busy

        record, show = run_busy(shape, kind, block, sizes, loads), _show_busy
    else:
        from dlmbench.bench.core import Settings, run

        asked = Settings(
            shape, place, kind, block, sizes, prompt_tokens, new_tokens, keys, repeats, plain, compiled, cudnn, rows
        )  # fmt: skip
        record, show = run(asked), _show
    if not json:
        show(record)
    if out:
        _save(record, out)
    print(json_module.dumps(record))


def _save(record: dict, folder: Path) -> None:
    import json
    import re

    name = "decoders" if "decoders" in record else f"{record['shape']}{'-busy' if 'busy' in record else ''}"
    machine = "cpu" if record["device"] == "cpu" else re.sub(r"\W+", "-", record["device"]).strip("-").lower()
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{machine}-{name}"
    stem.with_suffix(".json").write_text(json.dumps(record) + "\n")
    if "growth" in record and find_spec("matplotlib"):  # a bare machine keeps the numbers
        from dlmbench.bench.growth import draw_growth

        draw_growth(record, stem.with_name(f"{stem.name}-growth.png"))


def _show(record: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)
    console.print(
        f"{record['shape']}: {record['parameters'] / 1e6:.1f} M parameters, {record['dtype']} on {record['device']}, "
        f"{record['threads']} threads, torch {record['torch']}\n"
        f"measured read {record['read_gb_per_s']:.1f} GB/s, copy {record['copy_gb_per_s']:.1f} GB/s, matrix products "
        f"{record['matmul_gflop_per_s']:.0f} GFLOP/s"
    )
    if "experts" in record:
        here, whole = record["experts"], record["experts_of_shape"]
        scaled = f"{here} of {whole}, scaled down for this device" if here < whole else f"{here}"
        console.print(f"{record['active_parameters'] / 1e6:.1f} M of them active; experts a layer: {scaled}")
    tables = (
        (_show_cached,) if "cached" in record else (_show_forwards, *([_show_decoding] if record["decoding"] else []))
    )
    for show in tables:
        console.print(show(record, Table))
    for name, value in record["ratios"].items():
        console.print(f"{name}: {value:.2f}x")
    for name, reason in record.get("failed", {}).items():
        console.print(f"{name} could not be timed: {reason}")
    if "growth" in record:
        law = record["growth"]
        console.print(
            f"a forward grows as {law['constant_ms']:.2f} ms + {law['ms_a_row']:.3f} ms a row + "
            f"{1e6 * law['ms_a_row_and_key']:.1f} ns a row and key, at most {law['largest_error']:.0%} off"
        )


def _show_busy(record: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{record['shape']}, {record['dtype']}: ms of a forward, blocks of {record['block_length']}, beside busy "
        "processes; watched: the number of threads is chosen, all: it is torch's own"
    )
    for name in ("busy", "batch", "watched", "p95", "threads", "of its quiet time", f"all ({record['threads']})"):
        table.add_column(name, justify="right")
    for row in record["busy"]:
        times = [f"{row[name]:.2f}" for name in ("ms", "ms_p95")]
        ratio, all_threads = f"{row['times_quiet']:.2f}x", f"{row['all_threads_ms']:.1f}"
        table.add_row(str(row["load"]), str(row["batch"]), *times, str(row["chosen"]), ratio, all_threads)
    Console(markup=False).print(table)


def _show_forwards(record: dict, table_class):
    table = table_class(title=f"one forward of a block of {record['block_length']}, head included")
    optional = {"transformers": "transformers_ms", "compiled": "compiled_ms", "growth law": "fitted_ms"}
    optional = {name: key for name, key in optional.items() if any(key in row for row in record["forwards"])}
    for name in ("batch", "keys", "ms", "range", "of the roofline", "of reading", *optional):
        table.add_column(name, justify="right")
    for row in record["forwards"]:
        spread = f"{row['ms_min']:.2f} to {row['ms_max']:.2f}"
        shares = (f"{row[name]:.0%}" for name in ("roofline_share", "bandwidth_share"))
        others = (f"{row[key]:.2f}" if key in row else "-" for key in optional.values())
        table.add_row(str(row["batch"]), str(row["context"]), f"{row['ms']:.2f}", spread, *shares, *others)
    return table


def _show_cached(record: dict, table_class):
    table = table_class(title=f"one forward of one row, blocks of {record['block_length']}, milliseconds")
    for name in ("length", "whole row", "prefix, half-way", "dual"):
        table.add_column(name, justify="right")
    for row in record["cached"]:
        table.add_row(str(row["length"]), *(f"{row[f'{name}_ms']:.2f}" for name in ("none", "prefix", "dual")))
    return table


def _show_decoding(record: dict, table_class):
    title = (
        f"one token a step, {record['new_tokens']} new tokens, end tokens ignored; time outside forwards (of it writes "
        "of keys and values); first block and requests in ms"
    )
    table = table_class(title=title)
    forms = {
        "outside": ("outside_share", ".1%"), "(writes)": ("writes_share", ".1%"),
        "wall / device": ("wall_over_device", ".3f"), "first block": ("first_block_ms", ".0f"),
        "p50": ("latency_p50_ms", ".0f"), "p95": ("latency_p95_ms", ".0f"),
    }  # fmt: skip
    forms = {name: form for name, form in forms.items() if any(form[0] in row for row in record["decoding"])}
    for name in ("loop", "batch", "tok/s", "range", *forms):
        table.add_column(name, justify="left" if name == "loop" else "right")
    for row in record["decoding"]:
        spread = f"{row['tokens_per_s_min']:.0f}-{row['tokens_per_s_max']:.0f}"
        cells = (format(row[key], form) if key in row else "-" for key, form in forms.values())
        table.add_row(row["loop"], str(row["batch"]), f"{row['tokens_per_s']:.0f}", spread, *cells)
    return table


def _show_decoders(record: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{record['task']} dev items, batch {record['batch']}: ms a step; share of it outside forwards, of these "
        "in writes of keys and values, and in passes of helpers"
    )
    table.add_column("model")
    table.add_column("decoder", min_width=17)
    for name in ("tok/s", "step", "outside", "writes", "helpers"):
        table.add_column(name, justify="right")
    for row in record["decoders"]:
        shares = row["outside_share"], row["writes_share"], row["outside_backbone_share"] - row["outside_share"]
        speed = f"{row['tokens_per_s']:.0f}", f"{row['ms_per_step']:.2f}"
        table.add_row(row["model"], row["decoder"], *speed, *(f"{share:.1%}" for share in shares))
    Console(markup=False).print(table)
