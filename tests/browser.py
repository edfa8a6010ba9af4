"""A headless Chromium that tests drive through its own debugging pipe, with nothing but the standard library."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 120  # seconds, of machines that are busy


class Page:
    """A tab of a browser."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read = write, os.fdopen(read, "rb")
        self.number, self.session = 0, None
        self.complaints: list[str] = []
        self.buffer = b""

    def call(self, method: str, **params: Any) -> Any:
        """Call the browser, and return its answer; what the page complains of meanwhile is kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(answer["params"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            more = self.read.read1(1 << 16)
            assert more, "the browser is gone"
            self.buffer += more
        line, _, self.buffer = self.buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait_for("document.documentElement?.dataset.ready === 'true'")

    def value(self, expression: str) -> Any:
        """Return what an expression of JavaScript comes to, promises kept."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        until = time.monotonic() + PATIENCE
        while not self.value(f"Boolean({condition})"):
            assert time.monotonic() < until, (condition, self.value("document.body.innerText"), self.complaints)
            time.sleep(0.05)

    def middle(self, selector: str) -> tuple[float, float]:
        box = self.value(
            f"(() => {{ const e = document.querySelector('{selector}'); e.scrollIntoView({{block: 'nearest'}}); "
            f"const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height] }})()"
        )
        return box[0] + box[2] / 2, box[1] + box[3] / 2

    def click(self, selector: str) -> None:
        self.drag([self.middle(selector)])

    def drag(self, points: list[tuple[float, float]]) -> None:
        """Press the mouse at the first of some points, go through the others, and let go at the last."""
        moves = [("mousePressed", points[0]), *(("mouseMoved", point) for point in points[1:])]
        for kind, (x, y) in [*moves, ("mouseReleased", points[-1])]:
            buttons = 0 if kind == "mouseReleased" else 1
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1)

    def swipe(self, points: list[tuple[float, float]]) -> None:
        """Do the same with a finger."""
        for kind, some in [("touchStart", points[:1]), *(("touchMove", [point]) for point in points[1:])]:
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in some])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str, shift: bool = False) -> None:
        more = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, modifiers=8 * shift, **more)

    def stage(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """Return points of the unit square, (x, y), as places on the stage."""
        left, top, width = self.value(
            "(() => { const e = document.querySelector('#stage'); e.scrollIntoView({block: 'nearest'}); "
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width] })()"
        )
        return [(left + x * width, top + y * width) for x, y in points]

    def screenshot(self, path: Path) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def look(self, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """Have a screen of so many pixels, light or dark."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **sizes)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Start a browser of its own, with an empty profile, and yield a tab of it."""
    assert CHROMIUM is not None
    to_browser, write = os.pipe()
    read, from_browser = os.pipe()

    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_browser, from_browser)]  # neither 3 nor 4

    def as_it_expects() -> None:
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command = [CHROMIUM, *flags, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=as_it_expects
    )
    for end in (*high, to_browser, from_browser):
        os.close(end)
    page = Page(write, read)
    try:
        target = page.call("Target.createTarget", url="about:blank")["targetId"]
        page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.look(1200, 900)
        yield page
    finally:
        process.terminate()
        process.wait(PATIENCE)
        os.close(write)
        page.read.close()
