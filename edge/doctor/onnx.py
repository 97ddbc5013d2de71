"""An ONNX graph of one operator, y = x + x, written byte by byte: the `onnx` package is not on a robot.

Messages and field numbers are those of onnx.proto (ONNX 1.x); a field is its number and wire type, then its value
(Protocol Buffers' encoding).
"""

from __future__ import annotations

_FLOAT = 1  # TensorProto.DataType


def _message(number: int, *parts: bytes) -> bytes:
    """A field that holds a message or a text; all here are shorter than 128 bytes."""
    content = b"".join(parts)
    return bytes((number << 3 | 2, len(content))) + content


def _number(number: int, value: int) -> bytes:
    return bytes((number << 3, value))


def _value(number: int, name: bytes) -> bytes:
    """A ValueInfoProto of one float: name = 1, type = 2; tensor_type = 1 of elem_type = 1, shape = 2 of dim = 1."""
    shape = _message(2, _message(1, _number(1, 1)))
    return _message(number, _message(1, name), _message(2, _message(1, _number(1, _FLOAT), shape)))


# NodeProto: input = 1, output = 2, op_type = 4. GraphProto: node = 1, name = 2, input = 11, output = 12.
_NODE = _message(1, _message(1, b"x"), _message(1, b"x"), _message(2, b"y"), _message(4, b"Add"))
_GRAPH = (_NODE, _message(2, b"doubler"), _value(11, b"x"), _value(12, b"y"))

# ModelProto: ir_version = 1, opset_import = 8 (version = 2), graph = 7.
DOUBLER = _number(1, 8) + _message(8, _number(2, 13)) + _message(7, *_GRAPH)
"""A ModelProto: takes ``x`` and gives ``y`` = 2 x, both float32 of shape (1,)."""
