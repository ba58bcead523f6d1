"""`dlmbench generate`: decode one prompt and show the text, the counts and, if asked, every step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlmbench.cli import flags
from dlmbench.cli.console import as_text, print_json, print_notes


def generate(
    prompt: Annotated[str | None, typer.Option(help="text to continue")] = None,
    prompt_ids: Annotated[str | None, typer.Option(help="token ids instead of a text, as 1,2,3")] = None,
    method: Annotated[str, typer.Option(help="decoder")] = "threshold",
    model: Annotated[str | None, typer.Option(help="preset, checkpoint folder or hub name")] = None,
    like: flags.Like = None,
    threshold: Annotated[float | None, typer.Option(help="value of the method's knob")] = None,
    draft: flags.Draft = None,
    guide: flags.Guide = None,
    reference: flags.Reference = None,
    head: flags.Head = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="METHOD.OPTION=VALUE, may be repeated")] = None,
    block_length: Annotated[int | None, typer.Option(help="positions decoded together")] = None,
    gen_length: Annotated[int, typer.Option(help="most tokens to generate")] = 128,
    chat_template: Annotated[bool | None, typer.Option(help="wrap the prompt in the model's chat template")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0 keeps all")] = 0,
    top_p: Annotated[float, typer.Option(help="1 keeps all")] = 1.0,
    store: Annotated[str, typer.Option(help="fused or separate")] = "fused",
    cache: Annotated[str, typer.Option(help="none, prefix, dual, freecache, prompt (bidirectional)")] = "none",
    seed: Annotated[int, typer.Option(help="seed of the draws")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16")] = "auto",
    plugin: Annotated[str | None, typer.Option(help="Python file that registers a decoder")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="show the denoising as it happens")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="write the JSON of the generation, steps included, to this file")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="print one JSON object with ids, text, counts and steps")
    ] = False,
) -> None:
    """Decode one prompt."""
    from dlmbench.request import options
    from dlmbench.engine import Request, build
    from dlmbench.errors import RequestError
    from dlmbench.models.presets import default_model, resolve
    from dlmbench.request import RunSpec
    from dlmbench.request.rules import notes_on

    _exactly_one(prompt, prompt_ids)
    if trace and not trace.absolute().parent.is_dir():
        raise RequestError(f"--trace {trace} has no folder to be written to; make {trace.parent} first.")
    spec = RunSpec(
        method=method, task="nano-gsm", model=model or default_model(), like=like, threshold=threshold, against=(),
        draft=draft, guide=guide, reference=reference, head=head,
        settings=options.parse_assignments(set_ or ()), block_length=block_length, gen_length=gen_length,
        chat_template=chat_template, temperature=temperature, top_k=top_k, top_p=top_p, store=store, cache=cache,
        seed=seed, device=device, dtype=dtype, plugin=plugin, batch_size=1,
    )  # fmt: skip
    preset = resolve(spec.model, spec.like)
    print_notes(notes_on(preset, spec))
    engine = build(spec)
    use_template = preset.chat_template if chat_template is None else chat_template
    ids = _ids(engine.tokenizer, prompt, prompt_ids, use_template)
    request = Request("prompt", tuple(ids), gen_length, seed=seed)
    watcher = None
    if watch:
        from dlmbench.report.watch import Watcher

        watcher = Watcher(engine, ids)
    result = engine.generate([request], trace=True, on_step=watcher)[0]
    record = as_json(result)
    if trace:
        trace.write_text(as_text(record) + "\n", encoding="utf-8")
    if json:
        print_json(record)
    elif watcher:
        watcher.finish(result)
    else:
        print(result.text)
        typer.echo(_summary(result), err=True)


def as_json(result) -> dict:
    """The public JSON of a generation: ids, text, counts, tokens, seconds, stop reason, steps."""
    return {
        "ids": result.ids,
        "text": result.text,
        "counts": {role: {kind: n["calls"] for kind, n in kinds.items()} for role, kinds in result.counts.items()},
        "tokens": result.tokens,
        "seconds": round(result.seconds, 6),
        "stop_reason": result.stop_reason,
        "steps": result.trace,
    }


def _summary(result) -> str:
    forwards = sum(n["calls"] for kind, n in result.counts["target"].items() if kind != "prefill")
    return (
        f"{result.tokens} tokens in {forwards} forwards ({result.tokens / forwards:.2f} a forward), "
        f"{result.seconds:.2f} s with tracing, stopped by {result.stop_reason}"
    )


def _exactly_one(prompt: str | None, prompt_ids: str | None) -> None:
    from dlmbench.errors import RequestError

    if (prompt is None) == (prompt_ids is None):
        raise RequestError('Give exactly one of --prompt and --prompt-ids; for example --prompt "2+3=".')


def _ids(tokenizer, prompt: str | None, prompt_ids: str | None, chat_template: bool) -> list[int]:
    from dlmbench.engine.prompts import prompt_ids as encode
    from dlmbench.engine.prompts import render_chat
    from dlmbench.errors import RequestError

    if prompt_ids is not None:
        try:
            return [int(part) for part in prompt_ids.split(",")]
        except ValueError as error:
            raise RequestError(f"--prompt-ids is {prompt_ids!r}; it takes token ids separated by commas.") from error
    if chat_template:
        if not getattr(tokenizer, "chat_template", None):
            raise RequestError("This model's tokenizer has no chat template; leave out --chat-template.")
        prompt = render_chat(tokenizer, [{"role": "user", "content": prompt}])
    return list(encode(tokenizer, prompt, chat_template))
