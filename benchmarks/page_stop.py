"""How long from a press on the operator's page until the wire carries a decelerating setpoint?

``python -m benchmarks.page_stop [--quick] [--stops N] [--json FILE]``. The arm, its dash and how the first decelerating
setpoint is told are those of `benchmarks.stop_latency`. The run that commands it also has the operator's page
(`edge.console`), fed with ten images a second, open in a headless Chromium. At a random moment

- ``space``: the space bar is pressed;
- ``button``: the stop button is clicked;
- ``hung``: the run gets SIGSTOP and the space bar is pressed at once, long before the servo loop's own watchdog.

All three idle, and while the run's process also decides without a pause on every core. Time runs from the event's own
stamp, when the browser had the press. The browser's clock is compared with ours by asking for its time again and again;
the answer of the shortest way counts, and half of that way is how far off the comparison can be.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from playwright.sync_api import Page, sync_playwright

from benchmarks.machine import console, exit_code, machine
from benchmarks.preprocess import frame
from benchmarks.stop_latency import DASHING, Bench, Commander, decelerating_and_still, measure, table_of
from drivers.errors import DeviceError, UserError
from drivers.protocols import Frame, Intrinsics
from drivers.robot import Robot
from edge.console.console import FRAMES_HZ, Console
from edge.trace import Tracer

STOPS = 25
KINDS = ("space", "button", "hung")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CLOCK_ASKS = 200
LISTEN = """
window.pressed = [];
for (const kind of ["keydown", "pointerdown"])
  addEventListener(kind, (event) => window.pressed.push(event.timeStamp), true);
"""


class PageCommander(Commander):
    """The commanding process with an operator's page."""

    def __init__(self, robot: Robot, port: str, heard_s: Any, streams: int) -> None:
        super().__init__(robot, port, heard_s, streams)
        controller = SimpleNamespace(loop=self._loop, robot=robot, stop=lambda why: None)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._console = Console(listener, controller, Tracer(), {"robot": robot.name})  # type: ignore[arg-type]
        self._running.callback(self._console.close)
        self._console.phase("working")
        threading.Thread(target=self._look, daemon=True).start()

    def url(self) -> str:
        return self._console.url

    def _look(self) -> None:
        rgb = frame()
        height, width = rgb.shape[:2]
        while self._loop.alive:
            self._console.frame(Frame(rgb, None, time.monotonic(), Intrinsics.assumed(width, height), "camera"))
            time.sleep(1.0 / FRAMES_HZ)


class PageBench(Bench):
    """An arm, its commander, and a browser before the commander's page.

    Attributes:
        clock_off_ms: how far off the comparison of the two clocks can be.
    """

    commanded_by = PageCommander

    def __init__(self, streams: int, page: Page) -> None:
        super().__init__(streams)
        self._page, self._opened = page, False
        self.clock_off_ms = 0.0

    def run(self, kind: str) -> dict[str, float] | None:
        """Milliseconds of one stop; None where it could not be told when it began."""
        commander = self._with_commander()
        if not self._opened:
            self._open(commander.call("url"))
        ahead_s = self._ahead_s()
        self._page.evaluate("window.pressed.length = 0")
        steady_s, at_s, last_s = self._set_off(commander)
        time.sleep(max(at_s - time.monotonic(), 0.0))
        if kind == "hung":
            os.kill(commander.pid, signal.SIGSTOP)
        if kind == "button":
            self._page.mouse.down()
            self._page.mouse.up()
        else:
            self._page.keyboard.press("Space")
        t_s, counts = self._until_still()
        if kind == "hung":
            os.kill(commander.pid, signal.SIGCONT)
        pressed_s = self._page.evaluate("window.pressed[0]") * 1e-3 - ahead_s
        times_s = decelerating_and_still(t_s, counts[:, DASHING], steady_s, pressed_s) if pressed_s < last_s else None
        if times_s is None:
            return None
        decelerating_s, still_s = times_s
        return {
            "to_decelerating_ms": (decelerating_s - pressed_s) * 1e3,
            "to_standstill_ms": (still_s - pressed_s) * 1e3,
        }

    def _open(self, url: str) -> None:
        self._page.goto(url)
        self._page.wait_for_selector("#joints tr")
        self._page.evaluate(LISTEN)
        box = self._page.locator("#stop").bounding_box()
        if box is None:
            raise DeviceError("the page shows no stop button")
        self._page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self._opened = True

    def _ahead_s(self) -> float:
        """How much more the browser's clock shows than ours."""
        best_s, ahead_s = float("inf"), 0.0
        for _ in range(CLOCK_ASKS):
            asked_s = time.monotonic()
            shown_s = self._page.evaluate("performance.now()") * 1e-3
            took_s = time.monotonic() - asked_s
            if took_s < best_s:
                best_s, ahead_s = took_s, shown_s - (asked_s + took_s / 2)
        self.clock_off_ms = max(self.clock_off_ms, best_s / 2 * 1e3)
        return ahead_s


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page_stop", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one stop of each kind, idle alone")
    parser.add_argument("--stops", type=int, default=STOPS, metavar="N", help=f"of each kind (default: {STOPS})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    if args.stops < 1:
        raise UserError(f"--stops {args.stops}: expected one or more")
    screen, cores = console(), os.cpu_count() or 1
    stops = 1 if args.quick else args.stops
    screen.print(f"{cores} cores, load {os.getloadavg()[0]:.1f} before; medians and worst of {stops} stops each, ms")
    found: dict[str, dict[str, dict[str, object]]] = {}
    off_ms = 0.0
    installed = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox", "--disable-gpu"])
        for mode, streams in (("idle", 0), ("load", cores)):
            if mode == "load" and args.quick:
                break
            with browser.new_context(bypass_csp=True).new_page() as page:
                bench = PageBench(streams, page)
                found[mode] = measure(bench, KINDS, stops)
                off_ms = max(off_ms, bench.clock_off_ms)
    screen.print(table_of(found))
    screen.print(f"the browser's clock and ours are compared to {off_ms:.1f} ms")
    if args.json:
        report = {"benchmark": "page_stop", "machine": machine(), "clock_off_ms": off_ms, **found}
        args.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    sys.exit(exit_code(main))
