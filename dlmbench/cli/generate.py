"""`dlmbench generate`: decode one prompt and show the text, the counts and, if asked, every step."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlmbench.cli import flags
from dlmbench.cli.console import as_text, print_json, print_notes
from dlmbench.errors import RequestError
from dlmbench.files import Json
from dlmbench.report.watch import Watcher
from dlmbench.request import RunSpec

if TYPE_CHECKING:
    from dlmbench.engine import Generation
    from dlmbench.engine.text import Tokenizer


@flags.takes_options(without=("items", "server", "batch_size"), method="threshold", gen_length="128")
def generate(
    given: dict[str, Json],
    prompt: Annotated[str | None, typer.Option(help="text to continue")] = None,
    prompt_ids: Annotated[str | None, typer.Option(help="token ids instead of a text, as 1,2,3")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="show the denoising as it happens")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="write the JSON of the generation, steps included, to this file")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="print one JSON object with ids, text, counts and steps")
    ] = False,
) -> None:
    """Decode one prompt."""
    from dlmbench.engine import Request, build

    _exactly_one(prompt, prompt_ids)
    if watch and json:
        raise RequestError(
            "--watch and --json both write to the terminal; leave one of them out (--trace FILE keeps it)."
        )
    if trace and not trace.absolute().parent.is_dir():
        raise RequestError(f"--trace {trace} has no folder to be written to; make {trace.parent} first.")
    run = RunSpec.from_flags(given, task="nano-gsm", against=[], batch_size=1).resolve()
    print_notes(note for note in run.notes if "near zero" not in note)
    engine = build(run)
    ids = _ids(engine.tokenizer, prompt, prompt_ids, run.chat_template)
    request = Request("prompt", tuple(ids), run.spec.gen_length or 128, seed=run.spec.seed)
    with Watcher(engine, ids) if watch else nullcontext() as watcher:
        result = engine.generate([request], trace=True, on_step=watcher)[0]
        if watcher:
            watcher.finish(result)
    record = as_json(result)
    if trace:
        trace.write_text(as_text(record) + "\n", encoding="utf-8")
    if json:
        print_json(record)
    elif not watch:
        print(result.text)
        typer.echo(_summary(result), err=True)


def as_json(result: Generation) -> dict[str, object]:
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


def _summary(result: Generation) -> str:
    forwards = sum(n["calls"] for kind, n in result.counts["target"].items() if kind != "prefill")
    return (
        f"{result.tokens} tokens in {forwards} forwards ({result.tokens / forwards:.2f} a forward), "
        f"{result.seconds:.2f} s with tracing, stopped by {result.stop_reason}"
    )


def _exactly_one(prompt: str | None, prompt_ids: str | None) -> None:
    if (prompt is None) == (prompt_ids is None):
        raise RequestError('Give exactly one of --prompt and --prompt-ids; for example --prompt "2+3=".')


def _ids(tokenizer: Tokenizer, prompt: str | None, prompt_ids: str | None, chat_template: bool) -> list[int]:
    from dlmbench.engine import prompts

    if prompt_ids is not None:
        try:
            return [int(part) for part in prompt_ids.split(",")]
        except ValueError as error:
            raise RequestError(f"--prompt-ids is {prompt_ids!r}; it takes token ids separated by commas.") from error
    text = prompt or ""
    if chat_template:
        if not getattr(tokenizer, "chat_template", None):
            raise RequestError("This model's tokenizer has no chat template; leave out --chat-template.")
        text = prompts.render_chat(tokenizer, [{"role": "user", "content": text}])
    return list(prompts.prompt_ids(tokenizer, text, chat_template))
