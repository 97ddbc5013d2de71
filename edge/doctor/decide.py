"""What decides, for ``vlar1 doctor``: packages, ONNX Runtime's providers, CUDA, TensorRT, and a bundle."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drivers.errors import UserError
from edge.doctor.apart import TIMEOUT_S, NoAnswer, ask_apart, unanswered
from edge.doctor.findings import Finding, State
from edge.doctor.machine import L4T_RELEASE, MEMINFO, memory_bytes
from edge.doctor.onnx import DOUBLER

CPU = "CPUExecutionProvider"
COMMANDS = ("edge.ask", "edge.demo")
REMOTE = ("AzureExecutionProvider",)
"""Providers that compute elsewhere: of no use on a robot."""
LOADED_BELOW_BYTES = 100e6
"""A smaller bundle is loaded whole; of others, files and fields are checked."""
HASHED_BYTES_S = 50e6
"""The slowest that files may be read at, on their first visit."""
LOADING = 1.6
"""Peak memory over the bundle's size: 3.62 GiB while 2.50 GB load (docs/performance.md)."""
SYSTEM_PYTHON = Path("/usr/lib")
ROOM_TOKENS = 2048
"""Of the key-value cache that `OnnxEngine` makes."""

Ask = Callable[..., Any]


def packages(ask: Ask = ask_apart) -> Finding:
    """Whether `vlar1 ask` and `vlar1 demo` can be imported, with all that they need."""
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    try:
        ask("edge.doctor.decide:import_commands")
    except NoAnswer as error:
        return unanswered("packages", error, f"{python}; {error}", "pip install 'vlar1-edge'")
    return Finding("packages", "fine", f"{python}; all that `vlar1 ask` and `vlar1 demo` import is here")


def import_commands() -> None:
    """Raises ImportError where a package is missing or does not load."""
    from importlib import import_module

    for name in COMMANDS:
        import_module(name)


def providers(ask: Ask = ask_apart) -> list[Finding]:
    """ONNX Runtime's providers that load, each in a process of its own: a list of names says little."""
    try:
        version, names = ask("edge.doctor.decide:listed_providers")
    except NoAnswer as error:
        return [unanswered("ONNX Runtime", error, f"does not load: {error}", "pip install onnxruntime")]
    found = [Finding("ONNX Runtime", "fine", f"version {version}")]
    for name in (CPU, *(name for name in names if name not in (CPU, *REMOTE))):
        title = name.removesuffix("ExecutionProvider")
        try:
            why = ask("edge.doctor.decide:try_provider", name)
        except NoAnswer as error:
            why = str(error)
        if not why:
            found.append(Finding(f"provider {title}", "fine", "loads, and computes right"))
        elif name == CPU:
            type_ = "pip install --force-reinstall onnxruntime"
            found.append(Finding(f"provider {title}", "missing", f"does not compute: {why}", type_))
        else:
            library = re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open", why)
            type_ = f"ldconfig -p | grep {library[1].split('.so')[0]}" if library else ""
            found.append(Finding(f"provider {title}", "warning", f"listed, but does not load: {why}", type_))
    return found


def listed_providers() -> tuple[str, list[str]]:
    """ONNX Runtime's version, and what it was built with."""
    import onnxruntime as ort

    return ort.__version__, ort.get_available_providers()


def try_provider(name: str) -> str:
    """Run a graph of one operator on a provider: "" when it loads and 2 x 3 is 6, else why not."""
    import numpy as np
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    # ONNX Runtime goes on without a provider whose libraries are missing, and says which only on stderr.
    with tempfile.TemporaryFile() as log:
        usual = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            chosen = [name] if name == CPU else [name, CPU]
            session = ort.InferenceSession(DOUBLER, providers=chosen)
            (six,) = session.run(None, {"x": np.array([3.0], np.float32)})
        finally:
            os.dup2(usual, 2)
        log.seek(0)
        said = " ".join(log.read().decode(errors="replace").split())
    if name not in session.get_providers():
        library = re.search(r"lib[\w.+-]+\.so[\w.]*: cannot open shared object file[^\]\"]*", said)
        return library[0] if library else said[-200:] or "no reason given; its libraries or the device are missing"
    return "" if six.tolist() == [6.0] else f"2 x 3 is {six.tolist()} there"


def cuda(ask: Ask = ask_apart, release: Path = L4T_RELEASE) -> Finding:
    """The NVIDIA driver and its GPUs."""
    try:
        version, gpus = ask("edge.doctor.decide:cuda_driver")
    except NoAnswer as error:
        if "libcuda" in str(error) and release.exists():
            return Finding("CUDA driver", "warning", "a Jetson without libcuda.so.1", "sudo apt install nvidia-jetpack")
        if "libcuda" in str(error):
            return Finding("CUDA driver", "absent", "no NVIDIA driver; answers come from the processor")
        return Finding("CUDA driver", "warning", str(error), "nvidia-smi  # on a Jetson: sudo dmesg | grep -i nv")
    if not gpus:
        return Finding("CUDA driver", "warning", f"CUDA {version}, but no GPU is seen", "nvidia-smi")
    return Finding("CUDA driver", "fine", f"CUDA {version}: {', '.join(gpus)}")


def cuda_driver() -> tuple[str, list[str]]:
    """CUDA's version that the driver speaks, and the GPUs' names.

    Raises:
        OSError: no driver is installed.
        RuntimeError: it is, and refuses.
    """
    import ctypes

    driver = ctypes.CDLL("libcuda.so.1")
    if code := driver.cuInit(0):
        text = ctypes.c_char_p()
        driver.cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"cuInit failed: {(text.value or b'unknown error').decode()} ({code})")
    version, count, gpu = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for i in range(count.value):
        name = ctypes.create_string_buffer(128)
        driver.cuDeviceGet(ctypes.byref(gpu), i)
        driver.cuDeviceGetName(name, 128, gpu)
        names.append(name.value.decode(errors="replace"))
    return f"{version.value // 1000}.{version.value % 1000 // 10}", names


def tensorrt(ask: Ask = ask_apart, system: Path = SYSTEM_PYTHON) -> Finding:
    """NVIDIA's TensorRT, and the bindings of the driver that our engine calls it with.

    JetPack installs TensorRT for the system's Python, where a virtual environment does not look unless told to.
    """
    try:
        modules, bindings = ask("edge.doctor.decide:tensorrt_modules")
    except NoAnswer as error:
        if hidden := sorted(system.glob("python3*/dist-packages/tensorrt")):
            told = f"JetPack's is in {hidden[0]}, which this virtual environment does not see"
            return Finding("TensorRT", "warning", told, f"python3 -m venv --system-site-packages {sys.prefix}")
        why, _, how = str(error).partition("; ")
        state: State = "absent" if "is not installed" in why else "warning"
        return Finding("TensorRT", state, why, how)
    told = ", ".join(modules)
    if not bindings:
        return Finding("TensorRT", "warning", f"{told}, but no cuda-bindings to run it", "pip install cuda-bindings")
    return Finding("TensorRT", "fine", f"{told}; cuda-bindings {bindings}")


def tensorrt_modules() -> tuple[list[str], str]:
    """Name and version of each TensorRT module that loads, and the version of cuda-bindings, "" for none.

    Raises:
        UserError: no TensorRT loads.
    """
    from importlib.metadata import PackageNotFoundError, version

    from edge.engine.tensorrt.module import installed

    modules = [f"{module.__name__} {getattr(module, '__version__', '')}".strip() for module in installed()]
    try:
        return modules, version("cuda-bindings")
    except PackageNotFoundError:
        return modules, ""


def bundle(path: Path, ask: Ask = ask_apart, meminfo: Path = MEMINFO) -> list[Finding]:
    """A bundle: schema, every field, every file whole, graphs for an engine that is here, and whether it fits."""
    try:
        said = ask("edge.doctor.decide:look_at_bundle", str(path.absolute()), timeout_s=bundle_limit_s(path))
    except NoAnswer as error:
        message = str(error) if str(path) in str(error) else f"bundle {path}: {error}"
        return [Finding("bundle", "missing", message)]
    what = f"{path}: schema {said['schema']}, {said['quantization']}, {said['bytes'] / 1e6:.1f} MB"
    for_engines = f"for {' and '.join(said['engines'])}"
    if "onnx" not in said["engines"]:
        told = f"{what}, {for_engines} alone; `vlar1 ask` and `vlar1 demo` run on ONNX Runtime"
        return [Finding("bundle", "missing", told, "vlar1 export CHECKPOINT --engine both"), *_engines(path, said, ask)]
    loads = "every file whole" + (", loads" if said["loaded"] else "")
    found = [Finding("bundle", "fine", f"{what}, {for_engines}; {loads}")]
    total, available = memory_bytes(meminfo)
    need = LOADING * said["onnx_bytes"] + said["cache_bytes"]
    told = f"about {need / 1e9:.2f} GB while it loads; {available / 1e9:.1f} GB are available"
    if total and need > total:
        told = f"about {need / 1e9:.1f} GB while it loads; the machine has {total / 1e9:.1f} GB"
        found.append(Finding("fits into memory", "missing", told, "vlar1 export CHECKPOINT --quant int4"))
    elif available and need > available:
        found.append(Finding("fits into memory", "warning", told, "ps aux --sort=-rss | head"))
    else:
        found.append(Finding("fits into memory", "fine", told))
    return [*found, *_engines(path, said, ask)]


def bundle_limit_s(path: Path) -> float:
    """How long `bundle` may take: large files are read once, when a bundle is seen for the first time."""
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0
    return TIMEOUT_S + size / HASHED_BYTES_S


def look_at_bundle(path: str) -> dict[str, Any]:
    """What a bundle holds, once all of it was checked. Raises UserError as `load_bundle` and `OnnxEngine` do."""
    from edge.engine.bundle import ENGINE_FOLDERS, load_bundle
    from edge.engine.onnx import OnnxEngine

    loaded = load_bundle(path)
    manifest = loaded.manifest
    whole = "onnx" in manifest["engines"] and loaded.size_bytes < LOADED_BELOW_BYTES
    if whole:
        OnnxEngine(loaded)
    others = tuple(folder for folder in ENGINE_FOLDERS.values() if folder)
    rows, value_bytes = min(loaded.max_positions, ROOM_TOKENS) + 1, 2 if loaded.quantization == "fp16" else 4
    sizes = {name: int(entry["bytes"]) for name, entry in manifest["files"].items()}
    return {
        "schema": manifest["schema"],
        "quantization": loaded.quantization,
        "engines": manifest["engines"],
        "bytes": loaded.size_bytes,
        "onnx_bytes": sum(size for name, size in sizes.items() if not name.startswith(others)),
        "cache_bytes": 2 * loaded.layers * loaded.kv_heads * loaded.head_dim * rows * value_bytes,
        "loaded": whole,
    }


def _engines(path: Path, said: dict[str, Any], ask: Ask) -> list[Finding]:
    """Of a bundle with graphs for TensorRT: whether its engines are built for this GPU."""
    if "tensorrt" not in said["engines"]:
        return []
    try:
        target = ask("edge.doctor.decide:look_at_engines", str(path.absolute()))
    except NoAnswer as error:
        why, _, _ = str(error).rpartition("; ")
        return [Finding("TensorRT engines", "warning", why or str(error), f"vlar1 build {path}")]
    return [Finding("TensorRT engines", "fine", f"built for {target}")]


def look_at_engines(path: str) -> str:
    """What a bundle's engines were built for, if this GPU runs them. Raises UserError saying what lacks."""
    from edge.engine.bundle import load_bundle
    from edge.engine.tensorrt.cuda import this_gpu
    from edge.engine.tensorrt.module import installed
    from edge.engine.tensorrt.plan import find_engine, graphs

    loaded, refusals = load_bundle(path), []
    for module in installed():
        here = this_gpu(module)
        try:
            for graph in graphs(loaded):
                find_engine(loaded, graph, here)
            return str(here)
        except UserError as error:
            refusals.append(error)
    raise refusals[0]
