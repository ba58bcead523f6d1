"""`dlmbench limits`: what a decoder can reach at best, on an ideal model without weights, in seconds."""

from __future__ import annotations

from dataclasses import replace

from dlmbench.cli import flags
from dlmbench.cli.console import print_notes
from dlmbench.errors import RequestError
from dlmbench.files import Json
from dlmbench.models.presets import resolve
from dlmbench.oracle.options import MODELS, OracleOptions
from dlmbench.registry import DECODERS, load_plugin
from dlmbench.request import RunSpec, options
from dlmbench.request.resolved import bind_options
from dlmbench.request.rules import check_sampling
from dlmbench.stats import bracket, points
from dlmbench.tasks import load_task

ATTENTION = ("full", "block_causal")  # of the ideal model


@flags.takes_options(
    only=("rule", "task", "limit", "attention"),
    method="threshold",
    task="stress-shuffle/6",
    temperature="1.0",
    limit="200",
)
def limits(given: dict[str, Json], json: flags.Json = False) -> None:
    """Accuracy and forwards of a decoder on an ideal model, where only the rule loses, and on a too sure one.

    ideal: all right answers are equally likely; unequal: the nth 1/n as likely as the first; overconfident: sharpened,
    so that what it loses is not the rule's alone. Attention is full where the method takes it. A block is the whole
    answer unless --block-length says otherwise. At temperature 0 equally likely answers are ties.
    """
    import json as json_module

    from rich.console import Console
    from rich.table import Table

    from dlmbench.oracle.limits import limit as limit_of

    spec = RunSpec.from_flags(given, against=[])
    method = spec.method
    if spec.attention not in (None, *ATTENTION):
        raise RequestError(f"--attention is {spec.attention!r}; the ideal model has full or block_causal.")
    if spec.plugin:
        load_plugin(spec.plugin)
    decoder = DECODERS.get(method)
    attention = spec.attention or next((one for one in ATTENTION if one in decoder.attention), ATTENTION[0])
    spec = replace(spec, attention=attention)
    models = dict(MODELS)
    if chosen := spec.settings.get("oracle"):
        models["as set"] = options.bind(OracleOptions, chosen, "oracle")
    useless = [owner for owner in spec.settings if owner not in (method, "oracle")]
    if useless:
        raise RequestError(f"--set {useless[0]}.* is of no use here; take {method}.OPTION or oracle.OPTION.")
    config, notes = bind_options(spec, decoder, resolve("oracle"))
    check_sampling(spec, decoder, config)
    config = decoder.on_task(config, spec.attention, None, offered=False)
    print_notes(notes)
    task = load_task(spec.task)
    items = task.items("test", spec.limit)
    found = [limit_of(spec, decoder, config, task, items, name, chosen) for name, chosen in models.items()]
    if json:
        print(json_module.dumps([{**one.__dict__, "low": one.interval[0], "high": one.interval[1]} for one in found]))
        return
    table = Table("model", "accuracy", "95 %", "lost", "NFE", "TPF", box=None, collapse_padding=True, pad_edge=False)
    for column in table.columns:
        column.justify, column.no_wrap = "left" if column is table.columns[0] else "right", True
    for one in found:
        loss = points(1 - one.accuracy) if one.model.startswith("ideal") else "-"
        table.add_row(
            one.model, points(one.accuracy), bracket(*one.interval), loss, f"{one.forwards_per_item:.2f}",
            f"{one.tokens_per_forward:.2f}",
        )  # fmt: skip
    console = Console(highlight=False)
    how = f"temperature {spec.temperature:g}, {spec.attention} attention"
    console.print(f"{method} on {spec.task}, {len(items)} items, {how}")
    console.print(table)
