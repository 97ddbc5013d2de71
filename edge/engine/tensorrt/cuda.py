"""The GPU behind `edge.engine.tensorrt.device`: CUDA's driver and TensorRT's runtime, through NVIDIA's own bindings.

Nothing here runs without an NVIDIA GPU, so tests can run it only where there is one; it is kept to the bare calls.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError
from edge.engine.bundle import Bundle
from edge.engine.tensorrt.device import Buffer, Program
from edge.engine.tensorrt.module import Log, installed
from edge.engine.tensorrt.plan import Target, find_engine


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise UserError(f"TensorRT: cuda-bindings does not load ({error}); pip install cuda-bindings") from None
    return driver


def _call(function: Any, *args: Any) -> Any:
    """One call of the driver: its result, or UserError with CUDA's own words."""
    code, *values = function(*args)
    if int(code):
        _, text = _driver().cuGetErrorString(code)
        said = text.decode() if text else f"error {int(code)}"
        raise UserError(f"GPU: {function.__name__} failed: {said}; is another program using it, or its memory full?")
    return values[0] if values else None


def _first_gpu() -> tuple[Any, str, str]:
    """Handle, name and compute capability of the first GPU; raises UserError where there is none."""
    cu = _driver()
    try:
        _call(cu.cuInit, 0)
        gpu = _call(cu.cuDeviceGet, 0)
    except (RuntimeError, UserError) as error:  # RuntimeError: no driver is installed
        said = str(error).rstrip(".").splitlines()[0]
        raise UserError(
            f"TensorRT: there is no NVIDIA GPU here ({said}); ONNX Runtime's engine runs "
            "without, and vlar1 build BUNDLE --for SM86 builds for a GPU elsewhere"
        ) from None
    name = _call(cu.cuDeviceGetName, 128, gpu).split(b"\0")[0].decode()
    attribute = cu.CUdevice_attribute
    major = _call(cu.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, gpu)
    minor = _call(cu.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, gpu)
    return gpu, name, f"{major}.{minor}"


def this_gpu(trt: Any) -> Target:
    """What an engine must be built for to run here with the module `trt`. Raises UserError where there is no GPU."""
    _, name, capability = _first_gpu()
    return Target(trt.__name__, trt.__version__, (capability,), name)


@dataclass(frozen=True)
class CudaBuffer:
    """Device memory."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Of one entry along the first axis."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


class CudaDevice:
    """The first GPU, one stream, and the engines built for it."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises UserError where there is no GPU, or TensorRT is not installed."""
        self._bundle, self._cu = bundle, _driver()
        gpu, name, capability = _first_gpu()
        self._context, self._thread = _call(self._cu.cuDevicePrimaryCtxRetain, gpu), 0
        self._here = [(trt, Target(trt.__name__, trt.__version__, (capability,), name)) for trt in installed()]
        # A stream of its own: the default one cannot be recorded.
        self._stream = self._do(self._cu.cuStreamCreate, self._cu.CUstream_flags.CU_STREAM_NON_BLOCKING.value)
        self._addresses: list[int] = []
        weakref.finalize(self, _free, self._cu, self._addresses)

    def _do(self, function: Any, *args: Any) -> Any:
        # A robot's loop asks in another thread than the one that loaded the engine; to CUDA each is on its own.
        if self._thread != threading.get_ident():
            _call(self._cu.cuCtxSetCurrent, self._context)
            self._thread = threading.get_ident()
        return _call(function, *args)

    def zeros(self, shape: Sequence[int], dtype: Any) -> CudaBuffer:
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        address = int(self._do(self._cu.cuMemAlloc, size))
        self._addresses.append(address)
        self._do(self._cu.cuMemsetD8Async, address, 0, size, self._stream)
        return CudaBuffer(address, tuple(shape), kind)

    def rows(self, buffer: Any, first: int, stop: int) -> CudaBuffer:
        at = buffer.address + first * buffer.row_bytes
        return CudaBuffer(at, (stop - first, *buffer.shape[1:]), buffer.dtype)

    def write(self, buffer: Any, array: NDArray[Any]) -> None:
        # From ordinary host memory the call returns once the bytes are taken over, so `array` may go.
        self._do(self._cu.cuMemcpyHtoDAsync, buffer.address, array.ctypes.data, array.nbytes, self._stream)

    def read(self, buffer: Any, shape: Sequence[int]) -> NDArray[Any]:
        array = np.empty(shape, buffer.dtype)
        self._do(self._cu.cuMemcpyDtoHAsync, array.ctypes.data, buffer.address, array.nbytes, self._stream)
        self._do(self._cu.cuStreamSynchronize, self._stream)
        return array

    def copy_rows(self, target: Any, at: int, source: Any, first: int, stop: int) -> None:
        size = source.row_bytes
        to, start = target.address + at * size, source.address + first * size
        self._do(self._cu.cuMemcpyDtoDAsync, to, start, (stop - first) * size, self._stream)

    def insert(self, cache: Any, at: int, new: Any, n: int, pitch: int) -> None:
        token = cache.row_bytes // cache.shape[1]
        copy = self._cu.CUDA_MEMCPY2D()
        copy.srcMemoryType = copy.dstMemoryType = self._cu.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcDevice, copy.srcPitch = new.address, pitch * token
        copy.dstDevice, copy.dstPitch = cache.address + at * token, cache.row_bytes
        copy.WidthInBytes, copy.Height = n * token, cache.shape[0]
        self._do(self._cu.cuMemcpy2DAsync, copy, self._stream)

    def load(self, graph: str, buffers: Mapping[str, Buffer]) -> Program:
        refusals = []
        for trt, here in self._here:
            try:
                path = find_engine(self._bundle, graph, here)
            except UserError as error:
                refusals.append(error)
                continue
            return CudaProgram(trt, path, buffers, self._cu, self._stream)
        raise refusals[0]


def _free(cu: Any, addresses: list[int]) -> None:
    for address in addresses:
        cu.cuMemFree(address)


class CudaProgram:
    """One engine, an execution context for each set of shapes that is repeated, and its recording as a CUDA graph."""

    def __init__(self, trt: Any, path: Path, buffers: Mapping[str, Any], cu: Any, stream: Any) -> None:
        """Raises UserError where the engine does not load, or has other inputs and outputs."""
        self._trt, self._path, self._buffers, self._cu, self._stream = trt, path, buffers, cu, stream
        self._log = Log(trt)
        self._runtime = trt.Runtime(self._log.log)
        with path.open("rb") as file, contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
            self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise self._refused(self._log.reason)
        names = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        if names != set(buffers):
            raise self._refused(f"inputs and outputs {sorted(names ^ set(buffers))} are not the bundle's")
        self._contexts: dict[Any, Any] = {}
        self._recordings: dict[Any, Any] = {}

    def run(self, shapes: Mapping[str, Sequence[int]], profile: int, repeated: bool) -> None:
        # A recording holds on to its context's state, so shapes that are repeated have a context of their own.
        key = (profile, tuple(tuple(shape) for shape in shapes.values()) if repeated else None)
        recording = self._recordings.get(key)
        if recording is not None:
            _call(self._cu.cuGraphLaunch, recording, self._stream)
            return
        if key not in self._contexts:
            self._contexts[key] = self._context(profile)
        context = self._contexts[key]
        for name, shape in shapes.items():
            if not context.set_input_shape(name, tuple(shape)):
                raise self._refused(f"it takes no {name} of shape {tuple(shape)}")
        if not context.execute_async_v3(int(self._stream)):
            raise self._refused(self._log.reason)
        # tensorrt_rtx records by itself (see _context).
        if repeated and key not in self._recordings and not hasattr(self._trt, "CudaGraphStrategy"):
            self._recordings[key] = self._record(context)

    def _context(self, profile: int) -> Any:
        if hasattr(self._trt, "CudaGraphStrategy"):
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            raise self._refused(self._log.reason)
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.address)
        if profile:  # a new context has the first
            context.set_optimization_profile_async(profile, int(self._stream))
            _call(self._cu.cuStreamSynchronize, self._stream)
        return context

    def _record(self, context: Any) -> Any:
        """The run as a CUDA graph; None where it cannot be recorded: it is then enqueued kernel by kernel each time."""
        cu = self._cu
        _call(cu.cuStreamSynchronize, self._stream)
        _call(cu.cuStreamBeginCapture, self._stream, cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        enqueued = context.execute_async_v3(int(self._stream))
        code, graph = cu.cuStreamEndCapture(self._stream)
        if int(code) or not enqueued:
            return None
        code, recording = cu.cuGraphInstantiate(graph, 0)
        return None if int(code) else recording

    def _refused(self, reason: str) -> UserError:
        return UserError(f"engine {self._path}: {self._trt.__name__} cannot run it: {reason}; run: vlar1 build again")
