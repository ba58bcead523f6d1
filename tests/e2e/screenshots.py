"""Pictures of what a user sees, for looking at: python tests/e2e/screenshots.py RESULTS OUT

The report at desktop and phone width, light and dark: its first screen, the figure with a decoder switched off and a
point in focus, the items of that point, and a replay in the middle of an answer; the figure of the files, at the width
of a page and of a column; and ``generate --watch`` in a terminal. Needs Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from browser import Browser, Page, find_chromium
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

import dlmbench
from dlmbench.analysis.load import Results
from dlmbench.engine.prompts import prompt_ids
from dlmbench.report.figures import pareto
from dlmbench.report.watch import Watcher
from dlmbench.tasks import load_task

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
WATCHED = (0.3, 0.7, 1.0)  # the frames of the live view that are shown, as shares of its steps


def main(results: Path, out: Path) -> None:
    """Write all pictures into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(results / "pareto.png", out / "pareto.png")
    with Browser() as browser:
        for name, (width, height) in SIZES.items():
            for dark in (False, True):
                page = browser.open(results / "report.html", width, height, dark)
                mode = "dark" if dark else "light"
                page.run("document.documentElement.style.scrollBehavior = 'auto'")
                for part, show in {"head": lambda page: None, "figure": figure, "item": item, "replay": replay}.items():
                    show(page)
                    page.screenshot(out / f"{part}-{name}-{mode}.png")
                page.screenshot(out / f"report-{name}-{mode}.png", whole=True)
                if page.complaints():
                    sys.exit(f"The report complains: {page.complaints()}")
                page.close()
        terminal(browser, out / "watch.png")
    pareto.plot(Results.load(results, split="test").rows, out, name="pareto-column", column=True)
    for picture in sorted(out.glob("*.png")):
        print(picture)


def figure(page: Page) -> None:
    """Scroll to the figure, switch its last decoder off and go to the point in the middle."""
    page.run("document.getElementById('figure').scrollIntoView()")
    page.run("document.getElementById('figure-legend').lastElementChild.click()")
    page.run("(() => { const dots = document.querySelectorAll('.dots > *'); dots[dots.length >> 1].focus(); })()")


def item(page: Page) -> None:
    """Open what the point in focus stands for."""
    page.press("Enter")


def replay(page: Page) -> None:
    """Scroll to the replay, a third of its steps in."""
    page.run("document.getElementById('replay').scrollIntoView()")
    slide = "const s = document.getElementById('replay-step'); s.value = Math.round(s.max / 3)"
    page.run(f"(() => {{ {slide}; s.dispatchEvent(new Event('input')); }})()")


def terminal(browser: Browser, picture: Path) -> None:
    """Frames of ``dlmbench generate --watch`` as a terminal shows them."""
    engine = dlmbench.load("nano2", threshold=0.8)
    (item,) = load_task("nano-gsm").items("test", 1)
    ids = prompt_ids(engine.tokenizer, item.prompt, False)
    live = Console(file=open("/dev/null", "w"), force_terminal=True, width=88)
    watcher, frames = Watcher(engine, ids, live), []

    def keep(step: dict) -> None:
        watcher(step)
        frames.append(watcher.live.renderable)

    request = dlmbench.engine.Request("prompt", tuple(ids), 64)
    watcher.finish(engine.generate([request], trace=True, on_step=keep)[0])
    frames[-1:] = [watcher.live.renderable]
    shown = Console(record=True, file=open("/dev/null", "w"), force_terminal=True, width=88, color_system="truecolor")
    shown.print(Text(f'$ dlmbench generate --watch --threshold 0.8 --prompt "{item.prompt}"'))
    for share in WATCHED:
        shown.print()
        shown.print(frames[round(share * (len(frames) - 1))])
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "watch.html"
        page.write_text(shown.export_html(theme=MONOKAI, code_format=TERMINAL), encoding="utf-8")
        browser.open(page, 900, 420).screenshot(picture, whole=True)


TERMINAL = """<!DOCTYPE html><meta charset="utf-8"><style>{stylesheet}
body {{ background: #14161a; color: #e8eaec; padding: 1rem; }} pre {{ font: 16px/1.4 monospace; }}</style>
<pre>{code}</pre>"""

if __name__ == "__main__":
    if find_chromium() is None:
        sys.exit("No Chromium is installed here; on Debian: apt-get install chromium.")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
