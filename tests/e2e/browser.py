"""A headless Chromium for tests and screenshots, driven over its debugging pipe: no package, no port, no network.

    with Browser() as browser:
        page = browser.open(file, width=390, height=844, dark=True)
        page.run("document.title")
        page.screenshot(picture)

Left out: everything but one page at a time.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PATIENCE = 60  # seconds to an answer


def find_chromium() -> str | None:
    """Path of an installed Chromium, None without one."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


class Browser:
    """One process; closed at the end of the ``with`` block."""

    def __enter__(self) -> Browser:
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()
        self._profile = tempfile.TemporaryDirectory(prefix="browser")
        flags = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}"]
        flags += ["--no-first-run", "--disable-gpu", "--hide-scrollbars", "--disable-extensions", "--mute-audio"]
        flags += [
            "--disable-background-networking",
            "--disable-component-update",
            "--host-resolver-rules=MAP * ~NOTFOUND",
        ]
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_child, from_child)]  # out of the way of 3 and 4

        def connect() -> None:
            """Chromium reads descriptor 3 and writes 4."""
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [find_chromium(), *flags, "about:blank"],
            preexec_fn=connect,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in ends:
            os.close(end)
        os.close(to_child)
        os.close(from_child)
        os.set_blocking(self._read, False)
        self._buffer, self._number, self.events = b"", 0, []
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self.send("Browser.close")
            self._process.wait(10)
        except (OSError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._profile.name, ignore_errors=True)
        self._profile.cleanup()

    def open(self, file: Path, width: int, height: int, dark: bool = False) -> Page:
        """Load a local file into a fresh page of this size."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, target, self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.send("Emulation.setEmulatedMedia", features=[scheme])
        page.send("Page.navigate", url=Path(file).absolute().as_uri())
        self.wait_for("Page.loadEventFired", page.session)
        return page

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command and its result. Raises RuntimeError for what the browser refuses, TimeoutError for silence."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        return self._until(lambda one: one.get("id") == self._number).get("result", {})

    def wait_for(self, event: str, session: str) -> dict[str, Any]:
        """The first event of this name, past or to come."""

        def wanted(one: dict[str, Any]) -> bool:
            return one.get("method") == event and one.get("sessionId") == session

        return next((one for one in self.events if wanted(one)), None) or self._until(wanted)

    def _until(self, wanted: Any) -> dict[str, Any]:
        ends = time.monotonic() + _PATIENCE
        while time.monotonic() < ends:
            line, found, rest = self._buffer.partition(b"\0")
            if not found:
                try:
                    self._buffer += os.read(self._read, 1 << 20)
                except BlockingIOError:
                    time.sleep(0.005)
                continue
            self._buffer = rest
            message = json.loads(line)
            if "method" in message:
                self.events.append(message)
            if wanted(message):
                if "error" in message:
                    raise RuntimeError(message["error"]["message"])
                return message
        raise TimeoutError("the browser does not answer")


class Page:
    """One open page."""

    def __init__(self, browser: Browser, target: str, session: str):
        self.browser, self.target, self.session = browser, target, session

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **parameters)

    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression; what it throws is raised."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", "script failed"))
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key on whatever has the focus."""
        codes = {"ArrowRight": 39, "ArrowLeft": 37, "Tab": 9, "Enter": 13, "End": 35, "Home": 36}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            extra = text if kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **extra)

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, uncaught exceptions, and requests that left the file."""
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            kind, about = event["method"], event["params"]
            if kind == "Runtime.exceptionThrown":
                found.append(about["exceptionDetails"]["text"])
            elif kind == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
                found.append(str(about["args"]))
            elif kind == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                found.append(about["entry"]["text"])
            elif kind == "Network.requestWillBeSent" and not about["request"]["url"].startswith(("file:", "data:")):
                found.append(about["request"]["url"])
        return found

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of what is visible, or of the whole page."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        Path(path).write_bytes(base64.b64decode(answer["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def close(self) -> None:
        self.browser.send("Target.closeTarget", targetId=self.target)
