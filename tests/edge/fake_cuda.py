"""CUDA's driver and TensorRT's runtime as `edge.engine.tensorrt.cuda` calls them, on the host's memory.

As a GPU does, it works off what was asked for only when waited for, refuses to wait while a stream is recorded, and
finds memory as somebody else left it. The engines' arithmetic is ONNX Runtime's.
"""

from __future__ import annotations

import ctypes
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edge.engine.bundle import Bundle
from edge.engine.tensorrt.build import profiles
from edge.engine.tensorrt.plan import settings

STREAM = 77
_NO_CONTEXT, _REFUSED = 201, 900


class FakeDriver:
    """What of ``cuda.bindings.driver`` is used.

    Attributes:
        launches: replays of recordings.
        records: False lets every recording fail.
    """

    CUdevice_attribute = types.SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=8, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=7
    )
    CUstream_flags = types.SimpleNamespace(CU_STREAM_NON_BLOCKING=types.SimpleNamespace(value=1))
    CUstreamCaptureMode = types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUmemorytype = types.SimpleNamespace(CU_MEMORYTYPE_DEVICE=2)
    CUDA_MEMCPY2D = types.SimpleNamespace

    def __init__(self) -> None:
        self.launches = 0
        self.records = True
        self._memory: dict[int, Any] = {}
        self._queue: list[Callable[[], None]] = []
        self._recorded: list[Callable[[], None]] | None = None
        self._threads: set[int] = set()  # those that have a context

    def enqueue(self, work: Callable[[], None]) -> None:
        (self._queue if self._recorded is None else self._recorded).append(work)

    def _copy(self, stream: int, work: Callable[[], None]) -> tuple[int]:
        assert stream == STREAM
        if threading.get_ident() not in self._threads:
            return (_NO_CONTEXT,)
        if self._recorded is not None:
            return (_REFUSED,)
        self._queue.append(work)
        return (0,)

    def cuInit(self, flags: int) -> tuple[int]:
        return (0,)

    def cuDeviceGet(self, ordinal: int) -> tuple[int, int]:
        return 0, ordinal

    def cuDeviceGetName(self, length: int, gpu: int) -> tuple[int, bytes]:
        return 0, b"Fake GPU".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attribute: int, gpu: int) -> tuple[int, int]:
        return 0, attribute

    def cuDevicePrimaryCtxRetain(self, gpu: int) -> tuple[int, str]:
        return 0, "context"

    def cuCtxSetCurrent(self, context: str) -> tuple[int]:
        self._threads.add(threading.get_ident())
        return (0,)

    def cuGetErrorString(self, code: int) -> tuple[int, bytes]:
        return 0, f"error {code}".encode()

    def cuStreamCreate(self, flags: int) -> tuple[int, int]:
        return 0, STREAM

    def cuMemAlloc(self, size: int) -> tuple[int, int]:
        if size > 1 << 32:
            return 2, 0
        memory = ctypes.create_string_buffer(b"\xff" * (size + 512), size + 512)
        address = -(-ctypes.addressof(memory) // 256) * 256
        self._memory[address] = memory
        return 0, address

    def cuMemFree(self, address: int) -> tuple[int]:
        del self._memory[address]
        return (0,)

    def cuMemsetD8Async(self, address: int, value: int, size: int, stream: int) -> tuple[int]:
        return self._copy(stream, lambda: ctypes.memset(address, value, size) and None)

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[int]:
        taken = ctypes.string_at(source, size)
        return self._copy(stream, lambda: ctypes.memmove(target, taken, size) and None)

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> tuple[int]:
        return self._copy(stream, lambda: ctypes.memmove(target, source, size) and None)

    cuMemcpyDtoDAsync = cuMemcpyDtoHAsync

    def cuMemcpy2DAsync(self, copy: Any, stream: int) -> tuple[int]:
        assert copy.srcMemoryType == copy.dstMemoryType == 2
        assert copy.WidthInBytes <= min(copy.srcPitch, copy.dstPitch)

        def work() -> None:
            for row in range(copy.Height):
                target, source = copy.dstDevice + row * copy.dstPitch, copy.srcDevice + row * copy.srcPitch
                ctypes.memmove(target, source, copy.WidthInBytes)

        return self._copy(stream, work)

    def cuStreamSynchronize(self, stream: int) -> tuple[int]:
        if self._recorded is not None:
            return (_REFUSED,)
        while self._queue:
            self._queue.pop(0)()
        return (0,)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self._recorded = []
        return (0,)

    def cuStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        recorded, self._recorded = self._recorded, None
        return (0, recorded) if self.records else (_REFUSED, None)

    def cuGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:
        return 0, graph

    def cuGraphLaunch(self, recording: Any, stream: int) -> tuple[int]:
        self.launches += 1
        self._queue += recording
        return (0,)


def fake_tensorrt(driver: FakeDriver, bundle: Bundle, name: str = "tensorrt") -> Any:
    """A module whose engines are files that hold the path of their graph."""
    trt: Any = types.ModuleType(name)
    trt.__version__ = "10.3.0"
    trt.enqueued = 0

    class Logger:
        Severity = types.SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

        def __init__(self) -> None: ...

    class Context:
        def __init__(self, graph: Path) -> None:
            options = ort.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            self._session = ort.InferenceSession(str(graph), options)
            self._ranges = profiles(bundle, graph.name, settings(bundle)[0]) or [{}]
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._profile = 0

        def set_tensor_address(self, tensor: str, address: int) -> None:
            assert address % 256 == 0, "TensorRT wants aligned addresses"
            self._addresses[tensor] = address

        def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
            assert stream == STREAM
            self._profile, self._shapes = profile, {}
            return True

        def set_input_shape(self, tensor: str, shape: tuple[int, ...]) -> bool:
            low, _, high = self._ranges[self._profile][tensor]
            self._shapes[tensor] = shape
            return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

        def execute_async_v3(self, stream: int) -> bool:
            assert stream == STREAM and set(self._shapes) == set(self._ranges[self._profile])
            trt.enqueued += 1
            shapes, addresses = dict(self._shapes), dict(self._addresses)
            driver.enqueue(lambda: self._compute(shapes, addresses))
            return True

        def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
            inputs = self._session.get_inputs()
            feed = {v.name: _array(addresses[v.name], shapes.get(v.name, v.shape), v.type) for v in inputs}
            outputs = self._session.get_outputs()
            for value, found in zip(outputs, self._session.run(None, feed), strict=True):
                _array(addresses[value.name], found.shape, value.type)[...] = found

    class Engine:
        def __init__(self, graph: Path) -> None:
            self._graph, session = graph, ort.InferenceSession(str(graph))
            self._names = [value.name for value in [*session.get_inputs(), *session.get_outputs()]]
            self.num_io_tensors = len(self._names)

        def get_tensor_name(self, i: int) -> str:
            return self._names[i]

        def create_runtime_config(self) -> Any:
            return types.SimpleNamespace(cuda_graph_strategy=None)

        def create_execution_context(self, config: Any = None) -> Context:
            assert (config is not None and config.cuda_graph_strategy == "whole") == (name == "tensorrt_rtx")
            return Context(self._graph)

    class Runtime:
        def __init__(self, logger: Logger) -> None: ...

        def deserialize_cuda_engine(self, data: Any) -> Engine | None:
            text = bytes(data).decode()
            return Engine(Path(text)) if text.endswith(".onnx") else None

    trt.ILogger, trt.Runtime = Logger, Runtime
    if name == "tensorrt_rtx":
        trt.CudaGraphStrategy = types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    return trt


def _array(address: int, shape: Any, kind: str) -> np.ndarray:
    dtype = np.dtype({"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}[kind])
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)
