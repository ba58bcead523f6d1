"""`dlmbench limits`: what a decoder can reach at best, on an ideal model without weights, in seconds."""

from __future__ import annotations

from typing import Annotated

import typer

from dlmbench.backbone import load_tokenizer
from dlmbench.cli import flags
from dlmbench.errors import RequestError
from dlmbench.models.presets import ASSETS
from dlmbench.oracle.options import OracleOptions
from dlmbench.registry import DECODERS, load_plugin
from dlmbench.request import options
from dlmbench.request.values import parse_assignments
from dlmbench.stats import bracket, points
from dlmbench.tasks import load_task


def limits(
    method: Annotated[str, typer.Option(help="Decoder.")] = "threshold",
    task: Annotated[str, typer.Option(help="Task that lists its right answers.")] = "stress-shuffle/6",
    set_: flags.Set = None,
    threshold: flags.Threshold = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy; equally likely answers are ties then.")] = 1.0,
    limit: Annotated[int, typer.Option(min=1, help="First N test items.")] = 200,
    attention: Annotated[str, typer.Option(help="full or block_causal.")] = "full",
    block_length: Annotated[
        int | None, typer.Option(min=1, help="Positions decoded together.", show_default="the whole answer")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    plugin: flags.Plugin = None,
    json: flags.Json = False,
) -> None:
    """Accuracy and forwards of a decoder on an ideal model, where only the rule loses, and on a too sure one."""
    import json as json_module

    from rich.console import Console
    from rich.table import Table

    from dlmbench.decoders.predict import Sampling
    from dlmbench.oracle.limits import MODELS
    from dlmbench.oracle.limits import limit as limit_of

    if attention not in ("full", "block_causal"):
        raise RequestError(f"--attention is {attention!r}; the ideal model has full or block_causal.")
    if plugin:
        load_plugin(plugin)
    decoder = DECODERS.get(method)
    settings = parse_assignments(set_ or ())
    own = settings.pop(method, {})
    if threshold is not None:
        name = options.threshold_field(decoder.Config)
        if name is None:
            raise RequestError(f"Method {method} has no threshold: use --set {method}.OPTION=VALUE.")
        own = {name: threshold, **own}
    models = dict(MODELS)
    if chosen := settings.pop("oracle", None):
        models["as set"] = options.bind(OracleOptions, chosen, "oracle")
    if settings:
        raise RequestError(f"--set {next(iter(settings))}.* is of no use here; take {method}.OPTION or oracle.OPTION.")
    config = options.bind(decoder.Config, own, method)
    loaded = load_task(task)
    items, tokenizer = loaded.items("test", limit), load_tokenizer(ASSETS / "nano" / "tokenizer", plain=True)
    found = [
        limit_of(
            decoder, config, loaded, items, tokenizer, model=name, options=chosen, attention=attention,
            block_length=block_length, sampling=Sampling(temperature=temperature), seed=seed,
        )
        for name, chosen in models.items()
    ]  # fmt: skip
    if json:
        print(json_module.dumps([{**one.__dict__, "low": one.interval[0], "high": one.interval[1]} for one in found]))
        return
    table = Table("model", "accuracy", "95 %", "rule's loss", "forwards", "tokens a forward", box=None)
    for column in table.columns:
        column.justify, column.no_wrap = "left" if column is table.columns[0] else "right", True
    for one in found:
        loss = points(1 - one.accuracy) if one.model.startswith("ideal") else "-"
        table.add_row(
            one.model, points(one.accuracy), bracket(*one.interval), loss, f"{one.forwards_per_item:.2f}",
            f"{one.tokens_per_forward:.2f}",
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(f"{method} on {loaded.name}, {len(items)} items, temperature {temperature:g}, {attention} attention")
    console.print(table)
