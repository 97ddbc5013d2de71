"""What decides: providers that load or only say so, CUDA, TensorRT, and bundles whole, damaged, too large."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from edge.doctor import decide
from edge.doctor.apart import NoAnswer, Slow
from edge.doctor.onnx import DOUBLER
from edge.shipped import SHIPPED_BUNDLE


def answers(**said: Any) -> Callable[..., Any]:
    """An `ask_apart` that knows the functions in ``said``; an exception among them is raised."""

    def ask(function: str, *args: Any, **_: Any) -> Any:
        reply = said[function.partition(":")[2]]
        reply = reply(*args) if callable(reply) else reply
        if isinstance(reply, Exception):
            raise reply
        return reply

    return ask


def test_the_graph_is_what_the_onnx_package_takes_it_for() -> None:
    model = onnx.load_from_string(DOUBLER)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Add"]
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["x", "y"]


def test_what_is_only_slow_is_not_called_missing() -> None:
    for error, state in ((NoAnswer("ModuleNotFoundError: no"), "missing"), (Slow("no answer within 9 s"), "warning")):
        found = [decide.packages(answers(import_commands=error)), *decide.providers(answers(listed_providers=error))]
        assert [(one.state, bool(one.to_type)) for one in found] == [(state, state == "missing")] * 2


def test_the_processor_computes_and_an_unknown_provider_does_not_load() -> None:
    assert decide.try_provider(decide.CPU) == ""
    version, names = decide.listed_providers()
    assert version[0].isdigit() and decide.CPU in names
    with pytest.warns(UserWarning, match="NoSuchExecutionProvider"):
        assert decide.try_provider("NoSuchExecutionProvider").startswith("no reason given")


def test_each_provider_is_tried_and_what_fails_says_why() -> None:
    listed = ("1.23.0", ["CUDAExecutionProvider", "TensorrtExecutionProvider", "AzureExecutionProvider", decide.CPU])
    why = {
        decide.CPU: "",
        "CUDAExecutionProvider": "libcudnn.so.9: cannot open shared object file: No such file or directory",
        "TensorrtExecutionProvider": NoAnswer("crashed (SIGSEGV)"),
    }
    found = decide.providers(answers(listed_providers=listed, try_provider=lambda name: why[name]))
    assert [(f.name, f.state) for f in found] == [
        ("ONNX Runtime", "fine"),
        ("provider CPU", "fine"),
        ("provider CUDA", "warning"),
        ("provider Tensorrt", "warning"),
    ]
    assert found[2].to_type == "ldconfig -p | grep libcudnn"
    assert found[3].told == "listed, but does not load: crashed (SIGSEGV)"


def test_without_onnx_runtime_or_its_processor_nothing_works() -> None:
    (found,) = decide.providers(
        answers(listed_providers=NoAnswer("ModuleNotFoundError: No module named 'onnxruntime'"))
    )
    assert (found.state, found.to_type) == ("missing", "pip install onnxruntime")
    found = decide.providers(answers(listed_providers=("1.31", [decide.CPU]), try_provider="2 x 3 is [5.0] there"))[1]
    assert (found.state, found.told) == ("missing", "does not compute: 2 x 3 is [5.0] there")


@pytest.mark.parametrize(
    "reply,on_jetson,state,told",
    [
        (("12.6", ["Orin"]), True, "fine", "CUDA 12.6: Orin"),
        (("12.6", []), False, "warning", "no GPU is seen"),
        (NoAnswer("OSError: libcuda.so.1: cannot open shared object file"), False, "absent", "no NVIDIA driver"),
        (NoAnswer("OSError: libcuda.so.1: cannot open shared object file"), True, "warning", "a Jetson without"),
        (NoAnswer("RuntimeError: cuInit failed: unknown error (999)"), False, "warning", "cuInit failed"),
        (NoAnswer("no answer within 9 s"), True, "warning", "no answer"),
    ],
)
def test_cuda(reply: Any, on_jetson: bool, state: str, told: str, tmp_path: Path) -> None:
    release = tmp_path / "nv_tegra_release"
    if on_jetson:
        release.touch()
    found = decide.cuda(answers(cuda_driver=reply), release)
    assert found.state == state and told in found.told


def test_tensorrt_here_absent_broken_or_hidden_from_the_environment(tmp_path: Path) -> None:
    def look(reply: Any) -> Any:
        return decide.tensorrt(answers(tensorrt_modules=reply), tmp_path)

    assert look((["tensorrt 10.3.0"], "12.6.0")).told == "tensorrt 10.3.0; cuda-bindings 12.6.0"
    assert look((["tensorrt 10.3.0"], "")).to_type == "pip install cuda-bindings"
    absent = look(NoAnswer("tensorrt or tensorrt_rtx is not installed; install NVIDIA's tensorrt"))
    assert (absent.state, absent.to_type) == ("absent", "install NVIDIA's tensorrt")
    assert look(NoAnswer("tensorrt is installed but does not load: libnvinfer.so.10; x")).state == "warning"
    (tmp_path / "python3.10" / "dist-packages" / "tensorrt").mkdir(parents=True)
    hidden = look(NoAnswer("tensorrt or tensorrt_rtx is not installed; install it"))
    assert (hidden.state, hidden.to_type) == ("warning", f"python3 -m venv --system-site-packages {sys.prefix}")


def test_packages_that_do_not_import_are_missing() -> None:
    assert decide.packages(answers(import_commands=None)).state == "fine"
    found = decide.packages(answers(import_commands=NoAnswer("ModuleNotFoundError: No module named 'mink'")))
    assert found.state == "missing" and "No module named 'mink'" in found.told


def here(function: str, *args: Any, **_: Any) -> Any:
    """`ask_apart` without the other process."""
    from drivers.errors import UserError

    try:
        return getattr(decide, function.partition(":")[2])(*args)
    except UserError as error:
        raise NoAnswer(str(error)) from None


def meminfo(folder: Path, total_gb: float, available_gb: float) -> Path:
    path = folder / "meminfo"
    path.write_text(f"MemTotal: {int(total_gb * 1e9 / 1024)} kB\nMemAvailable: {int(available_gb * 1e9 / 1024)} kB\n")
    return path


def test_the_shipped_bundle_is_whole_loads_and_fits(tmp_path: Path) -> None:
    bundle, memory = decide.bundle(SHIPPED_BUNDLE, here, meminfo(tmp_path, 8.0, 5.0))
    assert (bundle.state, memory.state) == ("fine", "fine")
    assert "schema 2, int8, 8.2 MB, for onnx; every file whole, loads" in bundle.told


def test_a_damaged_and_an_absent_bundle_are_missing(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED_BUNDLE, tmp_path / "b")
    with (tmp_path / "b" / "head.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\1\2\3")
    (found,) = decide.bundle(tmp_path / "b", here)
    assert found.state == "missing" and "is damaged: its SHA-256" in found.told
    (found,) = decide.bundle(tmp_path / "none", here)
    assert found.state == "missing" and "no such folder" in found.told


@pytest.mark.parametrize(
    "total_gb,available_gb,state", [(8.0, 6.0, "fine"), (8.0, 4.0, "warning"), (4.0, 3.0, "missing")]
)
def test_whether_a_large_bundle_fits(total_gb: float, available_gb: float, state: str, tmp_path: Path) -> None:
    """2.5 GB of int4 took 3.9 GB while they loaded, beside a cache of 0.15 GB."""
    said = {"schema": 2, "quantization": "int4", "engines": ["onnx"], "bytes": 2.5e9, "loaded": False}
    said |= {"onnx_bytes": 2.5e9, "cache_bytes": 1.5e8}
    ask = answers(look_at_bundle=said)
    _, memory = decide.bundle(tmp_path, ask, meminfo(tmp_path, total_gb, available_gb))
    assert memory.state == state


def test_a_bundle_for_tensorrt_alone_does_not_run_on_the_commands_and_its_engines_are_looked_at(tmp_path: Path) -> None:
    said = {"schema": 2, "quantization": "fp16", "engines": ["tensorrt"], "bytes": 7e9, "loaded": False}
    ask = answers(
        look_at_bundle={**said, "onnx_bytes": 0, "cache_bytes": 0},
        look_at_engines=NoAnswer("engine b/x.engine: not built for Orin; run: vlar1 build b"),
    )
    bundle, engines = decide.bundle(tmp_path, ask)
    assert bundle.state == "missing" and "for tensorrt alone" in bundle.told
    assert (engines.state, engines.to_type) == ("warning", f"vlar1 build {tmp_path}")
