"""ONNX Runtime in place of a GPU: the TensorRT engine's `Device` over numpy arrays and the very graphs it was given.

So graphs for TensorRT are verified where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from edge.engine.bundle import Bundle
from edge.engine.tensorrt.build import profiles
from edge.engine.tensorrt.plan import graph_path, settings


class CpuDevice:
    """`edge.engine.tensorrt.device.Device`; as strict as a GPU where a GPU is strict, and it writes down what ran.

    Attributes:
        runs: (graph, the first input's rows, profile, repeated) of each run, in order.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.runs: list[tuple[str, int, int, bool]] = []
        self.inserted: list[tuple[int, int]] = []

    def zeros(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def rows(self, buffer: Any, first: int, stop: int) -> np.ndarray:
        return buffer[first:stop]

    def write(self, buffer: Any, array: Any) -> None:
        assert array.flags.c_contiguous and array.dtype == buffer.dtype and array.size <= buffer.size
        buffer.reshape(-1)[: array.size] = array.ravel()

    def read(self, buffer: Any, shape: Sequence[int]) -> np.ndarray:
        return _start(buffer, shape).copy()

    def copy_rows(self, target: Any, at: int, source: Any, first: int, stop: int) -> None:
        assert 0 <= first < stop <= len(source) and at + stop - first <= len(target)
        target[at : at + stop - first] = source[first:stop]

    def insert(self, cache: Any, at: int, new: Any, n: int, pitch: int) -> None:
        assert 0 < n <= pitch and at + n <= cache.shape[1]
        self.inserted.append((at, n))
        cache[:, at : at + n] = _start(new, (len(cache), pitch, cache.shape[2]))[:, :n]

    def load(self, graph: str, buffers: Mapping[str, Any]) -> CpuProgram:
        return CpuProgram(self, graph, buffers)


class CpuProgram:
    """`edge.engine.tensorrt.device.Program`."""

    def __init__(self, device: CpuDevice, graph: str, buffers: Mapping[str, Any]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        # Left to itself, ONNX Runtime makes 8-bit products of these on the processor, activations quantized too.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session = ort.InferenceSession(str(graph_path(device.bundle, graph)), options)
        self._device, self._graph, self._buffers = device, graph, buffers
        self._profiles = profiles(device.bundle, graph, settings(device.bundle)[0])
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name: value for value in self._session.get_outputs()}
        assert set(buffers) == {*inputs, *outputs}
        for name, value in {**inputs, **outputs}.items():
            kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}[value.type]
            assert buffers[name].dtype == kind, name
        self._open = {name for name, value in inputs.items() if any(isinstance(size, str) for size in value.shape)}
        self._inputs, self._outputs = list(inputs), list(outputs)

    def run(self, shapes: Mapping[str, Sequence[int]], profile: int, repeated: bool) -> None:
        assert set(shapes) == self._open
        for name, shape in shapes.items():
            low, _, high = self._profiles[profile][name]
            assert all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)), (name, shape, low, high)
        rows = next((shape[0] for shape in shapes.values()), 0)
        self._device.runs.append((self._graph, rows, profile, repeated))
        feed = {name: _start(self._buffers[name], shapes.get(name, self._buffers[name].shape)) for name in self._inputs}
        for name, array in zip(self._outputs, self._session.run(self._outputs, feed), strict=True):
            self._buffers[name].reshape(-1)[: array.size] = array.ravel()


def _start(buffer: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return buffer.reshape(-1)[: int(np.prod(shape))].reshape(shape)
