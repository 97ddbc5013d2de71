"""``vlar1 replay``: what a recording holds, its film and joint curves, and its decisions made again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drivers.camera.replay import ReplayCamera
from drivers.errors import DeviceError, UserError
from drivers.recording import DROPPED, Message, Recording
from drivers.recording_messages import DECISION, EVENT, JOINTS, SETPOINT
from edge.contract import OUTPUT_OPEN, TASKS
from edge.decode import compile_grammars, decide
from edge.engine.bundle import load_bundle
from edge.engine.onnx import OnnxEngine
from edge.engine.protocol import Engine
from edge.joint_plot import Series, plot_joints
from edge.picture_file import write_picture
from edge.recorded import hurried
from edge.replay_film import clock, write_film
from edge.shipped import SHIPPED_BUNDLE

DIFFERENT = 1  # exit code: a decision made again came out otherwise


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "replay",
        help="show a recorded run, or decide on its frames again",
        description="What a recording holds. Exit code 1 where --decide comes to another answer than was recorded.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="recording of a run, ….mcap")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write its film and its joint curves there")
    parser.add_argument("--decide", action="store_true", help="ask the model again, on the frames as recorded")
    parser.add_argument(
        "--bundle", type=Path, default=SHIPPED_BUNDLE, help="model bundle for --decide (default: the shipped one)"
    )
    parser.set_defaults(func=run)


@dataclass(frozen=True)
class Contents:
    """What one pass over a recording finds.

    Attributes:
        counts: messages of each topic.
        first_s, last_s: ``t_s`` of the earliest and the latest message.
        timeline: decisions and events, by time.
        measured, setpoints: the joints.
    """

    counts: dict[str, int]
    first_s: float
    last_s: float
    timeline: tuple[Message, ...]
    measured: Series
    setpoints: Series

    @property
    def decisions(self) -> list[Message]:
        return [message for message in self.timeline if message.topic == DECISION]

    @property
    def dropped_frames(self) -> int:
        events = (message.data for message in self.timeline if message.topic == EVENT)
        return sum(int(event.get("data", {}).get("count", 0)) for event in events if event.get("name") == DROPPED)


def survey(recording: Recording) -> Contents:
    """Read a recording once, without its images."""
    counts: dict[str, int] = {}
    first_s, last_s = float("inf"), float("-inf")
    timeline: list[Message] = []
    positions: dict[str, list[Message]] = {JOINTS: [], SETPOINT: []}
    for message in recording:
        counts[message.topic] = counts.get(message.topic, 0) + 1
        first_s, last_s = min(first_s, message.t_s), max(last_s, message.t_s)
        if message.topic in (DECISION, EVENT):
            timeline.append(message)
        elif message.topic in positions:
            positions[message.topic].append(message)
    timeline.sort(key=lambda message: message.t_s)
    return Contents(counts, first_s, last_s, tuple(timeline), _series(positions[JOINTS]), _series(positions[SETPOINT]))


def _series(messages: Sequence[Message]) -> Series:
    rows = [(message.t_s, message.data.get("position_rad") or []) for message in messages]
    most = max((len(row) for _, row in rows), default=0)
    whole = sorted(((t_s, row) for t_s, row in rows if len(row) == most), key=lambda item: item[0])
    t_s = np.array([t_s for t_s, _ in whole], float)
    return t_s, np.array([row for _, row in whole], float).reshape(len(whole), most)


def run(args: argparse.Namespace) -> int:
    """Show, write, decide; 0, or `DIFFERENT`."""
    recording = Recording(args.file)
    found = survey(recording)
    engine = None
    if args.decide:
        if not found.decisions:
            raise UserError(f"{args.file}: holds no decisions that could be made again; leave --decide out")
        engine = OnnxEngine(load_bundle(args.bundle))
        compile_grammars(engine.bundle)
    console = Console(highlight=False)
    show(console, recording, found)
    if args.out:
        _write(args.out, recording, found, console)
    if engine is None:
        return 0
    return 0 if _decide(console, recording, found, engine) else DIFFERENT


def show(console: Console, recording: Recording, found: Contents) -> None:
    """Print what is in a recording."""
    if not recording.complete:
        console.print("The recording has no end: the run was killed, or the file was cut. This is what is left.")
    if not found.counts:
        console.print(f"{recording.path}: nothing was recorded", markup=False)
        return
    span_s = found.last_s - found.first_s
    table = Table(title=f"{escape(str(recording.path))}: {clock(span_s)}")
    table.add_column("topic")
    table.add_column("messages", justify="right")
    table.add_column("a second", justify="right")
    for topic, count in sorted(found.counts.items()):
        table.add_row(escape(topic), str(count), f"{count / span_s:.1f}" if span_s > 0.0 else "")
    console.print(table)
    if found.dropped_frames:
        console.print(f"{found.dropped_frames} frames were dropped: the disk or the processor was too slow for them.")
    if found.timeline:
        console.print(_timeline(found))


def _timeline(found: Contents) -> Table:
    table = Table(title="decisions and events")
    table.add_column("time", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("")
    for message in found.timeline:
        data = message.data
        if message.topic == DECISION:
            what = f"decision: {data.get('task', '')}"
            text = f"{_plain(data.get('instruction'))} → {_output(data.get('text'))}{_seconds(data.get('took_s'))}"
        else:
            what, text = str(data.get("name", "")), _plain(data.get("text"))
        table.add_row(clock(message.t_s - found.first_s), escape(_plain(what)), escape(text))
    return table


def _write(folder: Path, recording: Recording, found: Contents, console: Console) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be made ({error.strerror}); name another folder") from None
    film = folder / "replay.mp4"
    if write_film(film, recording, found.decisions, found.first_s):
        console.print(f"film: {film}", markup=False)
    else:
        console.print("no film: the recording holds no frames")
    joints = max(found.measured[1].shape[1], found.setpoints[1].shape[1])
    if joints:
        # Where the two disagree on how many joints there are, the one that knows fewer is left out.
        curves = [
            series if series[1].shape[1] == joints else _series([]) for series in (found.measured, found.setpoints)
        ]
        names = [*recording.joint_names, *(f"joint {i + 1}" for i in range(len(recording.joint_names), joints))]
        write_picture(folder / "joints.png", plot_joints(names[:joints], *curves))
        console.print(f"joints: {folder / 'joints.png'}", markup=False)


def _decide(console: Console, recording: Recording, found: Contents, engine: Engine) -> bool:
    """Make every decision again and print how it came out; True where all are as recorded."""
    waiting = {id(message): message for message in found.decisions}
    again: dict[int, tuple[str, float]] = {}
    try:
        camera = ReplayCamera(recording.path)
        while waiting:
            frame = camera.read()
            for key, message in list(waiting.items()):
                if message.data.get("frame_t_s") == frame.t_s and message.data.get("task") in TASKS:
                    again[key] = _ask(engine, frame.rgb, message.data)
                    del waiting[key]
    except DeviceError:  # no more frames
        pass
    table = Table(
        title=f"decided again with {escape(engine.bundle.path.resolve().name)} ({engine.bundle.quantization})"
    )
    for column in ("time", "asked", "recorded", "now"):
        table.add_column(column, no_wrap=column == "time")
    table.add_column("s then", justify="right")
    table.add_column("s now", justify="right")
    same = 0
    for message in found.decisions:
        data = message.data
        asked = f"{data.get('task', '')}: {_plain(data.get('instruction'))}"
        text, took_s = again.get(id(message), ("", None))
        if took_s is None:
            now = "its frame was not recorded"
        elif text == data.get("text"):
            now, same = "the same", same + 1
        else:
            now = _output(text)
            now = "other words, same output" if now == _output(data.get("text")) else now
        recorded_s = data.get("took_s")
        table.add_row(
            clock(message.t_s - found.first_s),
            escape(asked),
            escape(_output(data.get("text"))),
            escape(now),
            f"{recorded_s:.2f}" if isinstance(recorded_s, int | float) else "",
            "" if took_s is None else f"{took_s:.2f}",
        )
    console.print(table)
    console.print(f"{same} of {len(found.decisions)} answers have the same text")
    if same < len(found.decisions):
        _say_why(console, recording, found, engine)
    return same == len(found.decisions)


def _ask(engine: Engine, rgb: Any, record: dict[str, Any]) -> tuple[str, float]:
    """The text of the answer now, and the seconds it took. The clock has no say in it this time."""
    draft = record.get("draft")
    decision = decide(engine, rgb, record["task"], str(record.get("instruction", "")), draft=draft)
    return decision.text, decision.took_s


def _say_why(console: Console, recording: Recording, found: Contents, engine: Engine) -> None:
    """What may have made the difference."""
    bundle = (engine.bundle.path.resolve().name, engine.bundle.quantization)
    records = [message.data for message in found.decisions]
    if any((data.get("bundle"), data.get("quantization")) != bundle for data in records):
        console.print("Some were made with another bundle than this one.")
    if any(hurried(data) for data in records):
        console.print("Some were cut short by their deadline, which depends on how busy the machine was.")
    if recording.image == "jpeg":
        console.print("The frames were recorded as JPEG: these are not quite the pixels that were decided on.")


def _output(text: object) -> str:
    """What stands in the answer's output block, or the whole answer where it has none."""
    shown = _plain(text)
    return shown.partition(OUTPUT_OPEN)[2].partition("<")[0] or shown


def _seconds(took_s: object) -> str:
    return f" ({took_s:.2f} s)" if isinstance(took_s, int | float) else ""


def _plain(text: object) -> str:
    """One line that cannot steer the terminal."""
    return "".join(char if char.isprintable() else " " for char in str(text or ""))
