"""Recordings: what a run saw, felt, was told and decided, in one MCAP file that a crash cannot spoil.

The file (https://mcap.dev) is a row of chunks. About once a second the chunk in hand is written out and the disk is
told to keep it, so a process that is killed loses no more than the last second, and the file reads up to there.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import zstandard
from mcap.exceptions import McapError
from mcap.records import Channel, Chunk, McapRecord, Metadata
from mcap.records import Message as McapMessage
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap.writer import MCAP0_MAGIC, Writer
from numpy.typing import NDArray

from drivers.errors import UserError
from drivers.protocols import Frame, Intrinsics
from drivers.recording_messages import (
    DECISION,
    DEPTH,
    EVENT,
    INTRINSICS,
    JOINTS,
    RGB,
    SCHEMAS,
    SETPOINT,
    ImageFormat,
    depth_message,
    intrinsics_message,
    read_depth,
    read_intrinsics,
    read_rgb,
    rgb_message,
    to_json,
)

FLUSH_S = 1.0
CHUNK_BYTES = 4 * 2**20
MAX_WAITING_FRAMES = 16  # some 2 MB each with depth
CLOSE_TIMEOUT_S = 30.0
DROPPED = "frames dropped"
_RUN = "run"  # the metadata record
# What reading a damaged record may raise.
_DAMAGE = (McapError, zstandard.ZstdError, struct.error, ValueError, OverflowError, MemoryError)

Joints = NDArray[np.float64] | Sequence[float]


def _print_warning(text: str) -> None:
    print(f"vlar1: warning: {text}", file=sys.stderr)


class Recorder:
    """Writes a recording. Its methods may be called from any thread, take well under a millisecond and never raise.

    A thread of its own encodes and writes. What the disk is too slow for waits in memory: 16 frames at most, after
    which frames, and only frames, are dropped; an event ``frames dropped`` says how many. Where the file can no longer
    be written, for example on a full disk, recording stops, ``warn`` is told once, and the run goes on.

    Args:
        path: of the new file, ``….mcap``.
        joint_names: go with every joint message.
        image: ``png`` keeps every pixel, so that a decision can be made again on what it was made on; ``jpeg`` (quality
            95) takes a fifth of the room.
        warn: told in a line why recording stopped.

    Attributes:
        problem: why recording stopped before its end; None otherwise.
        dropped_frames: so far.

    Raises:
        UserError: the file exists or cannot be made.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        joint_names: Sequence[str] = (),
        image: ImageFormat = "png",
        warn: Callable[[str], None] = _print_warning,
    ) -> None:
        self.path = Path(path)
        self.problem: str | None = None
        self.dropped_frames = 0
        self._names, self._image, self._warn = list(joint_names), image, warn
        self._queue: deque[tuple[str, float, bytes | Frame]] = deque()
        self._changed = threading.Condition()
        self._waiting_frames = self._newly_dropped = 0
        self._closing = False
        self._camera: tuple[Intrinsics, str] | None = None
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        try:
            self._file = open(self.path, "xb")
        except FileExistsError:
            raise UserError(f"{path}: exists already, and a recording overwrites nothing; name another file") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be made ({error.strerror}); name a file in a folder of yours") from None
        try:
            self._writer, self._channels = self._begin()
        except OSError as error:
            with suppress(OSError):
                self._file.close()
            self.path.unlink(missing_ok=True)
            raise UserError(f"{path}: cannot be written ({error.strerror}); make room, or name another file") from None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def frame(self, frame: Frame) -> None:
        """A camera frame; its arrays must not be changed afterwards. Dropped where too many wait."""
        with self._changed:
            if self._waiting_frames >= MAX_WAITING_FRAMES:
                self.dropped_frames += 1
                self._newly_dropped += 1
                return
            self._tell_dropped(frame.t_s)
            self._waiting_frames += 1
            self._put(RGB, frame.t_s, frame)

    def joints(
        self,
        t_s: float,
        position_rad: Joints,
        *,
        load: Joints | None = None,
        temperature_c: Joints | None = None,
        voltage_v: Joints | None = None,
    ) -> None:
        """Measured joints, in the order of ``joint_names``; ``load`` as the servos report it."""
        measured = {"load": load, "temperature_c": temperature_c, "voltage_v": voltage_v}
        given = {key: value for key, value in measured.items() if value is not None}
        self._record(JOINTS, t_s, {"name": self._names, "position_rad": position_rad, **given})

    def setpoint(self, t_s: float, position_rad: Joints) -> None:
        """What the joints were told, in the order of ``joint_names``."""
        self._record(SETPOINT, t_s, {"name": self._names, "position_rad": position_rad})

    def decision(self, t_s: float, data: Mapping[str, Any]) -> None:
        """What the model answered and to what, as `edge.recorded.decision_record` puts it."""
        self._record(DECISION, t_s, data)

    def event(self, t_s: float, name: str, text: str = "", **data: Any) -> None:
        """Anything worth a line: ``name`` says what kind, ``text`` says it in words."""
        self._record(EVENT, t_s, {"name": name, "text": text, "data": data})

    def close(self) -> None:
        """Write what waits and end the file. What comes later is not recorded. May be called twice."""
        with self._changed:
            if not self._closing:
                self._tell_dropped(time.monotonic())
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            self._stopped(f"the disk does not take it within {CLOSE_TIMEOUT_S:g} s")

    def _record(self, topic: str, t_s: float, fields: Mapping[str, Any]) -> None:
        message = to_json({**fields, "t_s": t_s})
        with self._changed:
            self._put(topic, t_s, message)

    def _tell_dropped(self, t_s: float) -> None:
        if self._newly_dropped:
            data = {"count": self._newly_dropped}
            text = f"{self._newly_dropped} frames, for want of time to write them"
            self._put(EVENT, t_s, to_json({"name": DROPPED, "text": text, "data": data, "t_s": t_s}))
            self._newly_dropped = 0

    def _put(self, topic: str, t_s: float, content: bytes | Frame) -> None:
        if not self._closing and self.problem is None:
            self._queue.append((topic, t_s, content))
            self._changed.notify()

    def _begin(self) -> tuple[Writer, dict[str, int]]:
        writer = Writer(self._file, chunk_size=CHUNK_BYTES)
        writer.start(library="vlar1-edge")
        about = {"wall_minus_monotonic_ns": str(self._offset_ns), "joint_names": json.dumps(self._names)}
        writer.add_metadata(_RUN, {**about, "image": self._image})
        schemas: dict[tuple[str, bytes], int] = {}
        channels = {}
        for topic, schema in SCHEMAS.items():
            if schema not in schemas:
                schemas[schema] = writer.register_schema(schema[0], "jsonschema", schema[1])
            channels[topic] = writer.register_channel(topic, "json", schemas[schema])
        self._sync(writer)
        return writer, channels

    def _sync(self, writer: Writer) -> None:
        writer.flush()
        os.fsync(self._file.fileno())

    def _run(self) -> None:
        try:
            self._write_all()
            self._writer.finish()
            self._file.flush()
            os.fsync(self._file.fileno())
        except Exception as error:  # whatever it is, the run goes on without its recording
            self._stopped((isinstance(error, OSError) and error.strerror) or repr(error))
        finally:
            try:
                self._file.close()
            except OSError as error:
                self._stopped(error.strerror or repr(error))

    def _write_all(self) -> None:
        """Everything that comes, until `close`."""
        flushed_s, dirty = time.monotonic(), False
        while True:
            with self._changed:
                left_s = max(0.0, flushed_s + FLUSH_S - time.monotonic()) if dirty else None
                self._changed.wait_for(lambda: self._queue or self._closing, left_s)
                item = self._queue.popleft() if self._queue else None
                if item is None and self._closing:
                    return
                if item is not None and item[0] == RGB:
                    self._waiting_frames -= 1
            if item is not None:
                topic, t_s, content = item
                if isinstance(content, Frame):
                    self._write_frame(content)
                else:
                    self._write(topic, t_s, content)
                if not dirty:
                    flushed_s, dirty = time.monotonic(), True
            if dirty and time.monotonic() >= flushed_s + FLUSH_S:
                self._sync(self._writer)
                dirty = False

    def _write(self, topic: str, t_s: float, message: bytes) -> None:
        log_ns = self._log_ns(t_s)
        self._writer.add_message(self._channels[topic], log_ns, message, log_ns)

    def _write_frame(self, frame: Frame) -> None:
        """Intrinsics where they are new, depth, then the image that completes the frame."""
        log_ns = self._log_ns(frame.t_s)
        try:
            depth = None if frame.depth_m is None else depth_message(frame.depth_m, frame.t_s, log_ns)
            rgb = rgb_message(frame, log_ns, self._image)
        except (cv2.error, ValueError, TypeError) as error:
            text = "a frame that is no image was not recorded: " + " ".join(str(error).split())
            self._write(EVENT, frame.t_s, to_json({"name": "bad frame", "text": text, "data": {}, "t_s": frame.t_s}))
            return
        if self._camera != (frame.intrinsics, frame.serial):
            self._write(INTRINSICS, frame.t_s, intrinsics_message(frame, log_ns))
            self._camera = (frame.intrinsics, frame.serial)
        if depth is not None:
            self._write(DEPTH, frame.t_s, depth)
        self._write(RGB, frame.t_s, rgb)

    def _log_ns(self, t_s: float) -> int:
        since_boot_ns = round(t_s * 1e9) if math.isfinite(t_s) else 0
        return min(max(0, self._offset_ns + since_boot_ns), 2**64 - 1)

    def _stopped(self, why: str) -> None:
        with self._changed:
            if self.problem is not None:
                return
            self.problem = f"{self.path}: recording stopped ({why}); what was recorded before can be replayed"
            self._queue.clear()
        self._warn(self.problem)


@dataclass(frozen=True)
class Message:
    """One message of a recording.

    Attributes:
        topic: one of `drivers.recording_messages`, in a recording of ours.
        t_s: ``time.monotonic()`` seconds of the run.
        log_ns: wall time.
        raw: as written.
    """

    topic: str
    t_s: float
    log_ns: int
    raw: bytes

    @cached_property
    def data(self) -> dict[str, Any]:
        """The JSON object; empty for what is none."""
        try:
            value = json.loads(self.raw)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


class Recording:
    """Reads a recording, whole or cut off anywhere; a damaged chunk is left out.

    Args:
        path: of an MCAP file.

    Attributes:
        complete: it was closed properly.
        wall_minus_monotonic_ns: adds to the run's clock to make wall time; 0 where the file does not say.
        joint_names: as the recorder was told.
        image: how the frames are kept, ``png`` or ``jpeg``; "" where the file does not say.

    Raises:
        UserError: no such file, or none in this format.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                magic = file.read(len(MCAP0_MAGIC))
                self._size = file.seek(0, os.SEEK_END)
                file.seek(max(0, self._size - len(magic)))
                end = file.read()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); name a recording") from None
        if magic != MCAP0_MAGIC:
            raise UserError(f"{path}: is no recording; expected an MCAP file")
        self.complete = self._size > len(magic) and end == MCAP0_MAGIC
        about = next((r.metadata for r in self._records() if isinstance(r, Metadata) and r.name == _RUN), {})
        self.image = about.get("image", "")
        try:
            self.wall_minus_monotonic_ns = int(about.get("wall_minus_monotonic_ns", "0"))
            self.joint_names = tuple(str(name) for name in json.loads(about.get("joint_names", "[]")))
        except (ValueError, TypeError):
            raise UserError(f"{path}: its metadata {_RUN!r} is not that of a recording of vlar1") from None

    def __iter__(self) -> Iterator[Message]:
        return self.messages()

    def messages(self, *topics: str) -> Iterator[Message]:
        """The messages of ``topics``, or all, in the order they were recorded."""
        channels: dict[int, str] = {}
        for record in self._records():
            if isinstance(record, Channel):
                channels[record.id] = record.topic
            elif isinstance(record, McapMessage):
                topic = channels.get(record.channel_id)
                if topic is not None and (not topics or topic in topics):
                    t_s = (record.log_time - self.wall_minus_monotonic_ns) / 1e9
                    yield Message(topic, t_s, record.log_time, record.data)

    def frames(self) -> Iterator[Frame]:
        """The frames, in the order they were recorded, with the time stamps of the run.

        Raises UserError for an image without intrinsics, or one that is damaged.
        """
        camera: tuple[Intrinsics, str] | None = None
        depth: Message | None = None
        for message in self.messages(RGB, DEPTH, INTRINSICS):
            try:
                if message.topic == INTRINSICS:
                    camera = read_intrinsics(message.data)
                elif message.topic == DEPTH:
                    depth = message
                else:
                    if camera is None:
                        raise ValueError(f"comes without {INTRINSICS}")
                    same = depth is not None and depth.log_ns == message.log_ns
                    depth_m = read_depth(depth.data) if depth is not None and same else None
                    yield Frame(read_rgb(message.data), depth_m, message.data.get("t_s", message.t_s), *camera)
            except (ValueError, KeyError, TypeError, cv2.error) as error:
                why = " ".join(str(error).split())
                raise UserError(f"{self.path}: {message.topic} at {message.t_s:.3f} s: {why}") from None

    def _records(self) -> Iterator[McapRecord]:
        with open(self.path, "rb") as file:
            records = StreamReader(file, emit_chunks=True, record_size_limit=self._size).records
            while True:
                try:
                    record = next(records)
                except StopIteration:
                    return
                except _DAMAGE:  # the end of what was written
                    return
                if not isinstance(record, Chunk):
                    yield record
                    continue
                try:
                    inner = breakup_chunk(record, validate_crc=True)
                except _DAMAGE:
                    continue
                yield from inner
