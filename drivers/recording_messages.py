"""What a recording's messages hold: topics, their JSON schemas, and camera frames to messages and back.

Every message is a JSON object with ``t_s``, ``time.monotonic()`` seconds of the run. Images and intrinsics also have
the wall clock in ``timestamp``, and bear the names of Foxglove's schemas, so that its viewer shows them as they are.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.protocols import Frame, Intrinsics

RGB, DEPTH, INTRINSICS = "/camera/rgb", "/camera/depth", "/camera/intrinsics"
JOINTS, SETPOINT = "/arm/joints", "/arm/setpoint"
DECISION, EVENT = "/decision", "/event"

ImageFormat = Literal["png", "jpeg"]
DEPTH_STEP_M = 1e-4  # of the depth's 16-bit PNG: up to 6.5535 m; 0 is unknown
JPEG_QUALITY = 95

_NUMBER, _STRING = {"type": "number"}, {"type": "string"}
_NUMBERS = {"type": "array", "items": _NUMBER}
_STAMP = {
    "type": "object",
    "title": "time",
    "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}},
}


def _schema(title: str, **properties: Any) -> tuple[str, bytes]:
    content = {"title": title, "type": "object", "properties": {"t_s": _NUMBER, **properties}}
    return title, json.dumps(content).encode()


_IMAGE: dict[str, Any] = {
    "timestamp": _STAMP,
    "frame_id": _STRING,
    "format": _STRING,
    "data": {"type": "string", "contentEncoding": "base64"},
}
_ARM: dict[str, Any] = {"name": {"type": "array", "items": _STRING}, "position_rad": _NUMBERS}

# The schema's name and the schema, for each topic.
SCHEMAS: dict[str, tuple[str, bytes]] = {
    RGB: _schema("foxglove.CompressedImage", **_IMAGE),
    DEPTH: _schema("foxglove.CompressedImage", **_IMAGE, step_m=_NUMBER),
    INTRINSICS: _schema(
        "foxglove.CameraCalibration",
        timestamp=_STAMP,
        frame_id=_STRING,
        width={"type": "integer"},
        height={"type": "integer"},
        distortion_model=_STRING,
        D=_NUMBERS,
        K=_NUMBERS,
        R=_NUMBERS,
        P=_NUMBERS,
        serial=_STRING,
        nominal={"type": "boolean"},
    ),
    JOINTS: _schema("vlar1.Joints", **_ARM, load=_NUMBERS, temperature_c=_NUMBERS, voltage_v=_NUMBERS),
    SETPOINT: _schema("vlar1.Setpoint", **_ARM),
    DECISION: _schema(
        "vlar1.Decision",
        task=_STRING,
        instruction=_STRING,
        text=_STRING,
        confidence=_NUMBER,
        took_s=_NUMBER,
        frame_t_s=_NUMBER,
        bundle=_STRING,
        quantization=_STRING,
    ),
    EVENT: _schema("vlar1.Event", name=_STRING, text=_STRING, data={"type": "object"}),
}


def to_json(message: Mapping[str, Any]) -> bytes:
    """Compact JSON of any message: arrays as lists, NaN and infinity as null, what JSON does not know as its text."""
    try:
        return _dumps(message)
    except ValueError:  # NaN or infinity, which JSON has no word for
        return _dumps(_finite(message))


def _dumps(value: Any) -> bytes:
    text = json.dumps(value, default=_plain, skipkeys=True, allow_nan=False, separators=(",", ":"))
    return text.encode()


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def intrinsics_message(frame: Frame, log_ns: int) -> bytes:
    """The camera of a frame; ``log_ns`` is wall time."""
    k = frame.intrinsics
    return to_json(
        {
            "t_s": frame.t_s,
            **_header(log_ns),
            "width": k.width,
            "height": k.height,
            "distortion_model": "plumb_bob" if k.distortion else "",
            "D": list(k.distortion),
            "K": k.matrix.ravel(),
            "R": np.eye(3).ravel(),
            "P": np.column_stack([k.matrix, np.zeros(3)]).ravel(),
            "serial": frame.serial,
            "nominal": k.nominal,
        }
    )


def read_intrinsics(message: Mapping[str, Any]) -> tuple[Intrinsics, str]:
    """The camera and its serial."""
    fx, _, cx, _, fy, cy, *_ = message["K"]
    size, nominal = (message["width"], message["height"]), bool(message.get("nominal", False))
    camera = Intrinsics(*size, fx, fy, cx, cy, tuple(message["D"]), nominal)
    return camera, message.get("serial", "")


def rgb_message(frame: Frame, log_ns: int, image_format: ImageFormat) -> bytes:
    """The colour image of a frame. Raises cv2.error for what is no image."""
    bgr = cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if image_format == "jpeg" else []
    return _image({"t_s": frame.t_s, **_header(log_ns), "format": image_format}, bgr, options)


def depth_message(depth_m: NDArray[np.float32], t_s: float, log_ns: int) -> bytes:
    """The depth of a frame, in whole steps. Unknown stays unknown; so does what is too far for 16 bits."""
    steps = np.rint(np.nan_to_num(depth_m, nan=0.0, posinf=0.0, neginf=0.0) / DEPTH_STEP_M)
    steps[(steps < 0) | (steps > np.iinfo(np.uint16).max)] = 0
    fields = {"t_s": t_s, **_header(log_ns), "format": "png", "step_m": DEPTH_STEP_M}
    return _image(fields, steps.astype(np.uint16), [])


def read_rgb(message: Mapping[str, Any]) -> NDArray[np.uint8]:
    """(h, w, 3) RGB. Raises ValueError where the data is no image."""
    bgr = _decode(message, cv2.IMREAD_COLOR)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def read_depth(message: Mapping[str, Any]) -> NDArray[np.float32]:
    """(h, w) float32 metres, 0 where unknown. Raises ValueError where the data is no image."""
    steps = _decode(message, cv2.IMREAD_UNCHANGED)
    return (steps * message.get("step_m", DEPTH_STEP_M)).astype(np.float32)


def _header(log_ns: int) -> dict[str, Any]:
    sec, nsec = divmod(log_ns, 10**9)
    return {"timestamp": {"sec": sec, "nsec": nsec}, "frame_id": "camera"}


def _image(fields: Mapping[str, Any], image: NDArray[Any], options: list[int]) -> bytes:
    encoded = cv2.imencode(f".{fields['format']}", image, options)[1]
    # Set in by hand: json.dumps looks at every letter, and the control thread waits meanwhile.
    return to_json(fields)[:-1] + b',"data":"' + base64.b64encode(encoded.tobytes()) + b'"}'


def _decode(message: Mapping[str, Any], how: int) -> NDArray[Any]:
    encoded = np.frombuffer(base64.b64decode(message["data"]), np.uint8)
    image = cv2.imdecode(encoded, how) if len(encoded) else None
    if image is None:
        raise ValueError("not an image")
    return image
