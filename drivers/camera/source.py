"""One line of text that says which camera: ``opencv:0``, ``realsense:SERIAL``, ``replay:run.mcap``, a video, ..."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import parse_qsl

from drivers.errors import UserError
from drivers.protocols import Camera, Intrinsics

KINDS = """\
opencv:INDEX or opencv:/dev/PATH, with ?fourcc=MJPG&width=&height=&fps=&exposure=&focus=&white_balance= as needed \
(the last three a number or auto); gstreamer:PIPELINE; csi:SENSOR[?width=&height=&fps=]; \
realsense[:SERIAL][?width=&height=&fps=]; replay:FILE.mcap; sim:SOCKET; a video file, a folder of pictures, or \
numbered ones (frame_%03d.png)"""

T = TypeVar("T")

LIVE = ("opencv", "gstreamer", "csi", "realsense", "sim")


def open_camera(source: str, intrinsics: Intrinsics | None = None) -> Camera:
    """The camera that ``source`` names; `KINDS` lists what there is.

    Args:
        intrinsics: for a camera that does not know its own (all but RealSense, recordings and the simulated one). Left
            out, they are nominal: good to look and to record, and refused wherever pixels become metres.

    Raises:
        UserError: the text names no camera, or a package is missing.
        DeviceError: the camera cannot be opened.
    """
    kind, rest = _split(source)
    if kind == "":
        return _open_file(source, intrinsics)
    if kind == "gstreamer":  # its text may hold any sign, so it takes no options
        if not rest.strip():
            raise _error(source, "names no pipeline")
        from drivers.camera.gstreamer import GStreamerCamera

        return GStreamerCamera(rest, intrinsics, serial=source)
    if kind == "replay":
        from drivers.camera.replay import ReplayCamera

        return ReplayCamera(rest, realtime=True)
    if kind == "sim":
        from drivers.camera.sim import SimCamera

        return SimCamera(rest)
    place, options = _options(source, rest)
    if kind == "opencv":
        return _open_opencv(source, place, options, intrinsics)
    width, height, fps = (options.take(name, _count) for name in ("width", "height", "fps"))
    options.end()
    if kind == "csi":
        from drivers.camera.gstreamer import GStreamerCamera, csi_pipeline

        if not place.isdecimal():
            raise _error(source, "names no sensor by its number")
        if intrinsics:
            width, height = intrinsics.width, intrinsics.height
        pipeline = csi_pipeline(int(place), width or 1280, height or 720, fps or 30)
        return GStreamerCamera(pipeline, intrinsics, serial=f"csi:{place}")
    from drivers.camera.realsense import RealSenseCamera

    return RealSenseCamera(place, width or 640, height or 480, fps or 30)


def is_live(source: str) -> bool:
    """Whether it is a camera that goes on for ever; a recording, a video or a folder ends."""
    return _split(source)[0] in LIVE


def _split(source: str) -> tuple[str, str]:
    """Kind and the rest; the kind of a file is empty. Raises UserError for what is neither."""
    kind, colon, rest = source.partition(":")
    if kind in (*LIVE, "replay") and (colon or kind == "realsense"):
        return kind, rest
    if kind.partition("?")[0] == "realsense":
        return "realsense", source[len("realsense") :]
    path = Path(source)
    if path.suffix == ".mcap" and path.exists():
        return "replay", source
    if source and (path.exists() or "%" in path.name and path.parent.is_dir()):
        return "", source
    raise _error(source, "is neither a camera nor a file that exists")


def _open_file(source: str, intrinsics: Intrinsics | None) -> Camera:
    if Path(source).is_dir():
        from drivers.camera.folder import FolderCamera

        return FolderCamera(Path(source), intrinsics)
    from drivers.camera.opencv import OpenCVCamera

    return OpenCVCamera(source, intrinsics)


def _open_opencv(source: str, place: str, options: _Options, intrinsics: Intrinsics | None) -> Camera:
    from drivers.camera.opencv import OpenCVCamera, Settings

    if not place.isdecimal() and not place.startswith("/dev/"):
        raise _error(source, "names no device by its number or /dev/... path")
    settings = Settings(
        fourcc=options.take("fourcc", _fourcc),
        width=options.take("width", _count),
        height=options.take("height", _count),
        fps=options.take("fps", _positive),
        exposure=options.take("exposure", _control),
        focus=options.take("focus", _control),
        white_balance=options.take("white_balance", _control),
    )
    options.end()
    if (settings.width is None) != (settings.height is None):
        raise _error(source, "gives half a size; name width and height")
    return OpenCVCamera(int(place) if place.isdecimal() else place, intrinsics, settings)


class _Options:
    """``name=value`` pairs after a question mark, each taken once."""

    def __init__(self, source: str, values: dict[str, str]) -> None:
        self._source, self._values = source, values

    def take(self, name: str, read: Callable[[str], T]) -> T | None:
        """The value of ``name``, or None. Raises UserError for one that ``read`` cannot use (ValueError)."""
        text = self._values.pop(name, None)
        if text is None:
            return None
        try:
            return read(text)
        except ValueError as error:
            raise _error(self._source, f"has {name}={text}, expected {error}") from None

    def end(self) -> None:
        """Raise UserError where something is left."""
        if self._values:
            raise _error(self._source, f"has the unknown setting {next(iter(self._values))}")


def _options(source: str, rest: str) -> tuple[str, _Options]:
    place, mark, query = rest.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(mark))
    except ValueError:
        raise _error(source, f"has settings that cannot be read: {query!r}, expected name=value&name=value") from None
    return place, _Options(source, dict(pairs))


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) == 0:
        raise ValueError("a whole number above 0")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < math.inf:
        raise ValueError("a number above 0")
    return value


def _control(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number or auto") from None


def _fourcc(text: str) -> str:
    if len(text) != 4 or not text.isascii():
        raise ValueError("four letters, such as MJPG or YUYV")
    return text


def _error(source: str, what: str) -> UserError:
    return UserError(f"camera source '{source}': {what}; expected {KINDS}")
