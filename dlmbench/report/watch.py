"""The denoising as it happens, in the terminal.

Masked positions are shown as dots, tokens of the last step in bold, tokens that it rewrote in bold and another colour,
tokens that were taken back struck through for one step. Without a terminal every step is one plain line.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from dlmbench.runs.recording import rewrites

MASK = "·"

if TYPE_CHECKING:
    from dlmbench.engine.request import TracedStep


class Watcher:
    """Receives the recorded steps of one row (`Engine.generate(on_step=...)`) and draws them; a context manager.

    Args:
        engine: for its tokenizer and block length.
        prompt: ids of the prompt.
        console: where to draw; stdout by default.
    """

    def __init__(self, engine: Any, prompt: list[int], console: Console | None = None):
        self.tokenizer, self.block_length = engine.tokenizer, engine.target.block_length
        self.console = console or Console(file=sys.stdout, highlight=False, markup=False)
        self.prompt = len(prompt)
        self.tokens: dict[int, int] = {}
        self.forwards = self.steps = 0
        self.began = time.perf_counter()
        self.live = Live(console=self.console, refresh_per_second=20) if self.console.is_terminal else None

    def __enter__(self) -> Watcher:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()  # or the terminal is left without its cursor

    def __call__(self, step: TracedStep) -> None:
        self.steps += 1
        self.forwards += sum(f["role"] == "target" for f in step["forwards"])
        fresh = dict(zip(step["positions"], step["tokens"]))
        taken_back = {p: self.tokens.pop(p) for p in step["remasked"] if p in self.tokens}
        rewritten = rewrites(step)
        line = self._line(fresh, taken_back, rewritten)  # names what was there before
        self.tokens |= fresh | rewritten
        if self.live:
            self.live.update(self._picture(fresh, taken_back, rewritten, step["block"]))
        else:
            self.console.print(line, markup=False, soft_wrap=True)

    def finish(self, result: Any) -> None:
        """Draw the finished text and the totals; `result` is the `Generation`."""
        rate = result.tokens / max(self.forwards, 1)
        work = f"{result.tokens} tokens, {self.forwards} forwards, {rate:.2f} a forward"
        summary = f"{work}, stopped by {result.stop_reason}"
        if self.live:
            self.live.update(Text(result.text) + Text(f"\n\n{summary}", style="dim"))
        else:
            self.console.print(result.text, markup=False, soft_wrap=True)
            self.console.print(summary, markup=False)

    def _picture(
        self, fresh: dict[int, int], taken_back: dict[int, int], rewritten: dict[int, int], block: int
    ) -> Text:
        text = Text()
        for position in range(self.prompt, (block + 1) * self.block_length):
            if position in fresh:
                text.append(self._word(fresh[position]), style="bold green")
            elif position in rewritten:
                text.append(self._word(rewritten[position]), style="bold yellow")
            elif position in self.tokens:
                text.append(self._word(self.tokens[position]))
            elif position in taken_back:
                text.append(self._word(taken_back[position]), style="strike red")
            else:
                text.append(MASK, style="dim")
        rate = len(self.tokens) / max(time.perf_counter() - self.began, 1e-9)
        return text.append(f"\n\nstep {self.steps}  forwards {self.forwards}  {rate:.0f} tokens/s", style="dim")

    def _line(self, fresh: dict[int, int], taken_back: dict[int, int], rewritten: dict[int, int]) -> str:
        shown = " ".join(f"{p}:{self._word(t)!r}" for p, t in sorted(fresh.items()))
        removed = "".join(f" -{p}:{self._word(t)!r}" for p, t in sorted(taken_back.items()))
        edits = ((p, self._word(self.tokens[p]) if p in self.tokens else MASK, t) for p, t in sorted(rewritten.items()))
        edited = "".join(f" {p}:{old!r}->{self._word(t)!r}" for p, old, t in edits)
        return f"step {self.steps:3}  forwards {self.forwards:3}  {shown}{removed}{edited}"

    def _word(self, token: int) -> str:
        return self.tokenizer.decode([token])
