"""The calls of CUDA and TensorRT, made to a stand-in on the host: addresses, order, waiting, recording, replaying."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeDriver, fake_tensorrt
from rich.progress import Progress
from tensorrt_bundle import add_tensorrt

from drivers.errors import UserError
from edge.engine.bundle import Bundle
from edge.engine.tensorrt import build, cuda
from edge.engine.tensorrt.engine import TensorRTEngine
from edge.engine.tensorrt.layout import STEP_BLOCK
from export.cpu_device import CpuDevice

EMBEDS = np.random.default_rng(0).normal(0, 0.3, (48, 64)).astype(np.float32)
PROMPT = [300, 301, *[5] * 48, 302]
Gpu = Callable[[str], tuple[FakeDriver, Any]]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return add_tensorrt(tiny_bundle, tiny_checkpoint, "fp16", tmp_path_factory.mktemp("tensorrt") / "fp16")


@pytest.fixture
def gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Puts a stand-in GPU in, with engines built for it by the module of the name given."""

    def put(name: str) -> tuple[FakeDriver, Any]:
        driver = FakeDriver()
        trt = fake_tensorrt(driver, bundle, name)
        monkeypatch.setattr(cuda, "_driver", lambda: driver)
        monkeypatch.setattr(cuda, "installed", lambda: [trt])
        monkeypatch.setattr(build, "installed", lambda names: [trt])
        monkeypatch.setattr(build, "build_one", lambda trt, graph, *rest: str(graph).encode())
        with Progress(disable=True) as progress:
            build.build_engines(bundle, cuda.this_gpu(trt), progress)
        return driver, trt

    return put


def prompt(bundle: Bundle) -> list[int]:
    return [bundle.image_token if token == 5 else token for token in PROMPT]


def course(engine: TensorRTEngine, bundle: Bundle) -> list[np.ndarray]:
    """Every kind of pass, some of them several times over."""
    found = [engine.encode_image(np.linspace(-1, 1, 192 * 1176, dtype=np.float32).reshape(192, 1176))]
    for _ in range(2):
        engine.prefill(prompt(bundle), EMBEDS)
        found.append(engine.logits())
        for tokens in ([310], [311], [312, 313, 314], [315], [316] * STEP_BLOCK, [317] * (STEP_BLOCK + 3), [318]):
            engine.extend(tokens)
            found += [engine.logits(len(tokens)), engine.number_logits()]
        engine.truncate(engine.length - 9)
        engine.extend([319])
        found.append(engine.logits())
    return found


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("records", [True, False])
def test_a_gpu_gives_what_the_graphs_give(bundle: Bundle, gpu: Gpu, name: str, records: bool) -> None:
    driver, trt = gpu(name)
    driver.records = records
    native, graphs = TensorRTEngine(bundle), TensorRTEngine(bundle, CpuDevice(bundle))
    for found, expected in zip(course(native, bundle), course(graphs, bundle), strict=True):
        np.testing.assert_array_equal(found, expected)
    # tensorrt_rtx records by itself; and what cannot be recorded is enqueued each time.
    assert (driver.launches > 20) == (records and name == "tensorrt")
    before, launches = trt.enqueued, driver.launches
    native.extend([320])
    native.logits()
    replayed = records and name == "tensorrt"
    assert (trt.enqueued - before, driver.launches - launches) == ((0, 2) if replayed else (2, 0))


def test_another_thread_may_ask(bundle: Bundle, gpu: Gpu) -> None:
    gpu("tensorrt")
    engine = TensorRTEngine(bundle)
    engine.prefill(prompt(bundle), EMBEDS)
    here = engine.logits()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(engine.prefill, prompt(bundle), EMBEDS).result()
        np.testing.assert_array_equal(pool.submit(engine.logits).result(), here)
    np.testing.assert_array_equal(engine.logits(), here)


def test_memory_is_given_back(bundle: Bundle, gpu: Gpu) -> None:
    driver, _ = gpu("tensorrt")
    engine = TensorRTEngine(bundle)
    assert driver._memory
    del engine
    gc.collect()
    assert not driver._memory


def test_what_does_not_load_or_fit_is_told_in_one_line(bundle: Bundle, gpu: Gpu, monkeypatch: Any) -> None:
    driver, trt = gpu("tensorrt")
    device = cuda.CudaDevice(bundle)
    with pytest.raises(UserError, match="GPU: cuMemAlloc failed: error 2; .*memory full"):
        device.zeros((1 << 33,), np.uint8)
    with pytest.raises(UserError, match=r"language.engine: tensorrt cannot run it: .*\['cos'.*run: vlar1 build"):
        device.load("language.onnx", {})
    monkeypatch.setattr(trt, "__version__", "10.4.0")
    with pytest.raises(
        UserError, match="language.engine: built for Fake GPU .* 8.7 by tensorrt 10.3.0, .*not for .* 10.4.0"
    ) as refusal:
        TensorRTEngine(bundle)
    assert "\n" not in str(refusal.value)


def test_the_stand_in_has_no_call_that_nvidias_bindings_lack() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="NVIDIA's bindings: pip install cuda-bindings")
    for name, value in vars(FakeDriver).items():
        if name.startswith(("cu", "CU")):
            assert hasattr(driver, name), name
            for member in vars(value) if name.startswith(("CUdev", "CUstr", "CUmem")) else ():
                assert hasattr(getattr(driver, name), member), member
    assert int(driver.CUresult.CUDA_SUCCESS) == 0
    copy = driver.CUDA_MEMCPY2D()
    copy.srcMemoryType = copy.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
    copy.dstDevice, copy.dstPitch, copy.srcDevice, copy.srcPitch = 1 << 40, 4096, 1 << 41, 256
    copy.WidthInBytes, copy.Height = 256, 144
    assert int(copy.dstDevice) == 1 << 40 and copy.Height == 144
