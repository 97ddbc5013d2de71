"""Starts the simulated tabletop in its own process and gives out its bus, its camera and its referee."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drivers.errors import DeviceError
from drivers.robot import Robot
from drivers.sim.judge import Verdict
from drivers.sim.scene import Scene, Task
from drivers.sim.server import HeldBoard, State, run

START_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 30.0


class SimulatedTable:
    """A context manager around the simulator's process.

    Attributes:
        port: the servo bus, a pseudo-terminal to open like ``/dev/ttyACM0``.
        camera_address: the socket for `drivers.camera.sim.SimCamera`.
    """

    def __init__(self, robot: Robot, scene: Scene, seed: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="vlar1-sim-"))
        self.camera_address = str(self._folder / "camera")
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=run, args=(theirs, self.camera_address, robot, scene, seed), name="tabletop", daemon=True
        )
        with deaf_to_interrupts():
            self._process.start()
        theirs.close()
        try:
            self.port = str(self._answer(START_TIMEOUT_S))
        except BaseException:
            self.close()
            raise

    def lay_out(self, scene: Scene, board: HeldBoard | None = None) -> None:
        """Referee: put other things on the table; the arm stays as it is."""
        self._call("lay_out", scene, board)

    def verdict(self, task: Task) -> Verdict:
        """Referee: did it work, by physics alone."""
        return self._call("verdict", task)

    def slide(self, item_index: int, dx_m: float, dy_m: float, duration_s: float) -> None:
        """Referee: push an item over the table during the next ``duration_s``; returns at once.

        The item goes where it is told, at rest at both ends, while physics goes on for all else: that it meets nothing
        is the caller's care (`drivers.sim.slide.clear_slide`).
        """
        self._call("slide", item_index, dx_m, dy_m, duration_s)

    def position(self, item_index: int) -> tuple[float, float, float]:
        """Referee: where an item's middle truly is, base frame, metres."""
        return self._call("position", item_index)

    def start_recording(self) -> None:
        """Referee: keep a state every 100 ms for the video."""
        self._call("start_recording")

    def stop_recording(self) -> list[State]:
        """Referee: the states kept since `start_recording`."""
        return self._call("stop_recording")

    def late_s(self) -> float:
        """How much real time the simulation has lost in all because the machine was too busy."""
        return self._call("late_s")

    def close(self) -> None:
        """End the process. What the arm does then is what a real arm does when the power goes."""
        if self._process.is_alive():
            try:
                self._pipe.send(("stop", ()))
            except (BrokenPipeError, OSError):
                pass
            self._process.join(3.0)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> SimulatedTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, name: str, *args: Any) -> Any:
        self._pipe.send((name, args))
        return self._answer(CALL_TIMEOUT_S)

    def _answer(self, timeout_s: float) -> Any:
        try:
            if self._pipe.poll(timeout_s):
                return self._pipe.recv()
        except (EOFError, OSError):
            pass
        raise DeviceError("simulated table: its process ended or does not answer; see what it printed above")


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes started in here ignore Ctrl-C from their first moment: a terminal sends it to them too, but it is for
    the runtime, which parks the arm first; until then the table must stand."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
