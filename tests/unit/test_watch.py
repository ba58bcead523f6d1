"""The live view. pytest tests/unit/test_watch.py"""

import contextlib
import io
from types import SimpleNamespace

from rich.console import Console

from dlmbench.report.watch import MASK, Watcher

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
STEP = {"block": 1, "forwards": [{"role": "target", "kind": "denoise", "query_tokens": 4}], "extra": {}}
FIRST = {**STEP, "positions": [4, 6], "tokens": [10, 12], "remasked": []}
SECOND = {**STEP, "positions": [5], "tokens": [11], "remasked": [6]}


def watcher(terminal):
    letters = SimpleNamespace(decode=lambda ids: "".join(chr(87 + i) for i in ids))
    engine = SimpleNamespace(tokenizer=letters, target=SimpleNamespace(block_length=4))
    console = Console(file=io.StringIO(), width=60, force_terminal=terminal, color_system=None)
    return Watcher(engine, [1, 2, 3, 4], console)


def test_without_a_terminal_every_step_is_a_line():
    watch = watcher(False)
    watch(FIRST)
    watch(SECOND)
    watch.finish(SimpleNamespace(text="ab", tokens=2, stop_reason="eos"))
    lines = watch.console.file.getvalue().splitlines()
    assert lines[0] == "step   1  forwards   1  4:'a' 6:'c'"
    assert lines[1] == "step   2  forwards   2  5:'b' -6:'c'"
    assert lines[2:] == ["ab", "2 tokens, 2 forwards, 1.00 a forward, stopped by eos"]


def test_the_picture_tells_new_old_taken_back_and_masked_apart():
    watch = watcher(True)
    watch(FIRST)
    watch.tokens.update({5: 11})
    picture = watch._picture({5: 11}, {6: 12}, {}, 1)
    assert picture.plain.splitlines()[0] == "abc" + MASK  # position 6 is in tokens until its step is taken in
    styles = {picture.plain[span.start : span.end]: str(span.style) for span in picture.spans}
    assert styles["b"] == "bold green" and styles[MASK] == "dim"


def test_the_cursor_comes_back_after_an_error():
    with contextlib.suppress(KeyboardInterrupt), watcher(True) as watch:
        watch(FIRST)
        raise KeyboardInterrupt
    written = watch.console.file.getvalue()
    assert written.rindex(SHOW) > written.rindex(HIDE)


def test_rewritten_tokens_are_shown_with_what_was_there_before():
    watch = watcher(False)
    watch(FIRST)
    watch({**STEP, "positions": [5], "tokens": [11], "remasked": [], "replaced": {"positions": [4], "tokens": [12]}})
    assert watch.console.file.getvalue().splitlines()[1] == "step   2  forwards   2  5:'b' 4:'a'->'c'"
    assert watch.tokens == {4: 12, 5: 11, 6: 12}
    live = watcher(True)
    live(FIRST)
    picture = live._picture({}, {}, {4: 12}, 1)
    styles = {picture.plain[span.start : span.end]: str(span.style) for span in picture.spans}
    assert picture.plain.startswith("c" + MASK) and styles["c"] == "bold yellow"
