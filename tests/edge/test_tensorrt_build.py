"""Every exported graph compiles for real GPUs, without one; engines are kept, and those of elsewhere are refused."""

from __future__ import annotations

import argparse
import importlib
import json
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress
from tensorrt_bundle import add_tensorrt

from drivers.errors import UserError
from edge import build_command
from edge.engine.bundle import HEAD, HEAD_NUMBERS, LANGUAGE, Bundle, load_bundle
from edge.engine.tensorrt import build, module, plan
from edge.engine.tensorrt.plan import Plan, Target

rtx = pytest.importorskip("tensorrt_rtx", reason="compiling for TensorRT without a GPU: pip install tensorrt-rtx")

ORIN = Target("tensorrt", "10.3.0", ("8.7",), "Orin")


@pytest.fixture(scope="module")
def bundles(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bundle]:
    folder = tmp_path_factory.mktemp("tensorrt")

    def get(quantization: str) -> Bundle:
        path = folder / quantization
        if path.exists():
            return load_bundle(path)
        return add_tensorrt(tiny_bundle, tiny_checkpoint, quantization, path)

    return get


@pytest.fixture
def bundle(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> Bundle:
    """One whose engines no other test sees."""
    return add_tensorrt(tiny_bundle, tiny_checkpoint, "int8", tmp_path / "bundle")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of graphs that were built, by a stand-in for TensorRT that takes no time."""
    graphs: list[str] = []

    def stand_in(trt: Any, graph: Path, *rest: Any) -> bytes:
        graphs.append(graph.name)
        return b"engine of " + graph.read_bytes()

    monkeypatch.setattr(build, "build_one", stand_in)
    monkeypatch.setattr(build, "installed", lambda names: [types.SimpleNamespace(__name__=names[0])])
    return graphs


def run(bundle: Bundle, target: Target) -> list[Path]:
    with Progress(disable=True) as progress:
        return build.build_engines(bundle, target, progress)


def command(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    build_command.register(parser.add_subparsers())
    args = parser.parse_args(["build", *argv])
    code: int = args.func(args)
    return code


def one_line(refusal: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("quantization", ["fp16", "int8", "int4"])
def test_every_graph_compiles_for_sm86_and_sm89(bundles, quantization: str, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = bundles(quantization)
    assert command(str(bundle.path), "--for", "SM86", "sm89") == 0
    out = capsys.readouterr().out
    here = Target("tensorrt_rtx", rtx.__version__, ("8.9",), "NVIDIA GeForce RTX 4060")
    for graph in plan.graphs(bundle):
        assert f"{graph}: " in out
        path = plan.find_engine(bundle, graph, here)
        described = plan.read(path)
        assert described is not None and described.precision == quantization and described.graph == graph
        assert described.target.capabilities == ("8.6", "8.9") and described.bytes == path.stat().st_size > 10_000
    assert set(plan.graphs(bundle)) == {LANGUAGE, HEAD, HEAD_NUMBERS, *(size.vision for size in bundle.images)}


def test_weights_stay_as_small_in_the_engine_as_in_the_graph(tmp_path: Path) -> None:
    import numpy as np
    import torch

    from export.onnx_writer import GraphWriter, WeightFile

    matrix = torch.randn(2048, 1024, generator=torch.Generator().manual_seed(0))
    sizes = {}
    for bits in (None, 8, 4):
        with WeightFile(tmp_path / f"{bits}.data") as weights:
            g = GraphWriter(weights, float16=True)
            y = g.matmul("x", "w", lambda: matrix, bits)
            info = ("x", np.float16, ("n", 1024)), ("y", np.float16, ("n", 2048))
            g.save(tmp_path / f"{bits}.onnx", [info[0]], [(y, info[1])])
        shapes = [{"x": ((9, 1024), (200, 1024), (512, 1024))}, {"x": ((1, 1024), (1, 1024), (8, 1024))}]
        with Progress(disable=True) as progress:
            target = module.ahead_of_time(["SM86"])
            sizes[bits] = len(
                bytes(build.build_one(rtx, tmp_path / f"{bits}.onnx", shapes, target, progress, tmp_path))
            )
    floats = 2 * matrix.numel()
    # Both profiles share one copy.
    assert sizes[None] < 1.2 * floats and sizes[8] < 0.7 * floats and sizes[4] < 0.4 * floats


def test_engines_that_are_there_are_kept(bundle: Bundle, built: list[str]) -> None:
    paths = run(bundle, ORIN)
    assert built == plan.graphs(bundle) and all(path.is_file() for path in paths)
    assert run(bundle, ORIN) == paths and len(built) == len(paths)
    # Damaged, half written, or of another export: built again, and only those.
    paths[0].write_bytes(paths[0].read_bytes()[:-1] + b"?")
    paths[1].with_suffix(".json").unlink()
    described = json.loads(paths[2].with_suffix(".json").read_text())
    paths[2].with_suffix(".json").write_text(json.dumps(described | {"graph_sha256": "0" * 64}))
    built.clear()
    run(bundle, ORIN)
    assert built == plan.graphs(bundle)[:3]
    built.clear()
    run(bundle, replace(ORIN, version="10.4.0"))
    assert built == plan.graphs(bundle)


def test_an_engine_of_a_version_with_other_profiles_is_built_again(
    bundle: Bundle, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(bundle, ORIN)
    built.clear()
    monkeypatch.setattr(plan, "STEP_BLOCK", plan.STEP_BLOCK + 1)
    with pytest.raises(UserError, match="was built from another export or version"):
        plan.find_engine(bundle, LANGUAGE, ORIN)
    run(bundle, ORIN)
    assert built == plan.graphs(bundle)


def test_a_bundle_that_cannot_be_written_is_noticed_before_building(
    bundle: Bundle, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match=f"bundle {bundle.path}: .* cannot be written; build in a copy") as refusal:
        run(bundle, ORIN)
    one_line(refusal)
    assert not built


def test_a_bundle_without_graphs_is_told_so_whatever_this_machine_lacks(tiny_bundle: Path) -> None:
    with pytest.raises(UserError, match="has no graphs for TensorRT .*--engine tensorrt or both"):
        command(str(tiny_bundle))


def test_an_engine_is_refused_where_it_was_not_built_for(bundle: Bundle, built: list[str]) -> None:
    def refused(here: Target) -> str:
        with pytest.raises(UserError, match=f"run: vlar1 build {bundle.path}") as refusal:
            plan.find_engine(bundle, LANGUAGE, here)
        return one_line(refusal)

    assert "not built for Orin of compute capability 8.7 by tensorrt 10.3.0" in refused(ORIN)
    path = run(bundle, ORIN)[0]
    assert plan.find_engine(bundle, LANGUAGE, ORIN) == path
    another = "built for Orin of compute capability 8.7 by tensorrt 10.3.0, not for "
    for here in (
        replace(ORIN, gpu="Thor", capabilities=("11.0",)),
        replace(ORIN, gpu="Orin NX"),
        replace(ORIN, version="10.4.0"),
        replace(ORIN, module="tensorrt_rtx"),
    ):
        assert another + str(here) in refused(here)
    described = plan.read(path)
    assert isinstance(described, Plan)
    path.write_bytes(b"?" * described.bytes)
    assert "is damaged" in refused(ORIN)
    changed = dict(bundle.manifest["files"])
    changed["tensorrt/language.data"] = {"sha256": "0" * 64, "bytes": 1}
    bundle = replace(bundle, manifest={**bundle.manifest, "files": changed})
    assert "was built from another export" in refused(ORIN)


def test_an_engine_built_here_is_preferred_to_one_built_ahead_of_time(bundle: Bundle, built: list[str]) -> None:
    here = Target("tensorrt_rtx", "1.7", ("8.6",), "RTX 3060")
    ahead = run(bundle, replace(here, gpu=None, capabilities=("8.6", "8.9")))[0]
    assert plan.find_engine(bundle, LANGUAGE, here) == ahead
    own = run(bundle, here)[0]
    assert plan.find_engine(bundle, LANGUAGE, here) == own != ahead
    own.write_bytes(b"?" * own.stat().st_size)  # damaged, it does not stand in the way of the other
    assert plan.find_engine(bundle, LANGUAGE, here) == ahead
    with pytest.raises(UserError, match="any GPU of compute capability 8.6 or 8.9 by tensorrt_rtx 1.7"):
        plan.find_engine(bundle, LANGUAGE, replace(here, capabilities=("12.0",), gpu="RTX 5060"))


def test_what_tensorrt_refuses_is_told_in_one_line(bundle: Bundle, tmp_path: Path) -> None:
    target = module.ahead_of_time(["SM86"])
    graph = plan.graph_path(bundle, HEAD)
    with Progress(disable=True) as progress:
        with pytest.raises(
            UserError, match=f"head.onnx: tensorrt_rtx {rtx.__version__} cannot build it: .*hidden"
        ) as at:
            build.build_one(rtx, graph, [{"hidden": ((1, 9), (1, 9), (1, 9))}], target, progress, tmp_path)
        one_line(at)
        graph.write_bytes(b"no graph")
        with pytest.raises(UserError, match="head.onnx: tensorrt_rtx .* cannot build it: .*pars|protobuf|model") as at:
            build.build_one(rtx, graph, [], target, progress, tmp_path)
        one_line(at)


def test_what_is_built_on_a_gpu_is_built_for_its_capability(bundle: Bundle, tmp_path: Path) -> None:
    def header(target: Target) -> bytes:
        """Which capabilities the engine says it is for, among other things; its size is not in it."""
        with Progress(disable=True) as progress:
            engine = bytes(build.build_one(rtx, plan.graph_path(bundle, HEAD), shapes, target, progress, tmp_path))
        return engine[28:44]

    shapes = build.profiles(bundle, HEAD, 128)
    turing = header(Target("tensorrt_rtx", rtx.__version__, ("7.5",), "NVIDIA GeForce RTX 2080"))
    assert turing == header(module.ahead_of_time(["SM75"])) != header(module.ahead_of_time(["SM86"]))
    with pytest.raises(UserError, match=r"builds for .*SM89.*, not for SM90 \(NVIDIA H100\); install") as refusal:
        header(Target("tensorrt_rtx", rtx.__version__, ("9.0",), "NVIDIA H100"))
    one_line(refusal)


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_tensorrt_itself_keeps_its_measurements_for_the_next_build(bundle: Bundle, tmp_path: Path) -> None:
    # The same bindings under the other name; what is built is still for another machine.
    trt = types.ModuleType("tensorrt")
    trt.__dict__.update({name: value for name, value in vars(rtx).items() if name != "__name__"})
    target = module.ahead_of_time(["SM86"])
    graph, cache = plan.graph_path(bundle, HEAD), tmp_path / "cache"
    for _ in range(2):
        with Progress(disable=True) as progress:
            assert build.build_one(trt, graph, build.profiles(bundle, HEAD, 128), target, progress, cache)
        assert (cache / "timing.cache").is_file()


def test_progress_is_shown(bundle: Bundle, tmp_path: Path) -> None:
    target = module.ahead_of_time(["SM86"])
    seen = []

    class Watched(Progress):
        def update(self, task_id: Any, **changes: Any) -> None:
            super().update(task_id, **changes)
            seen.append((self.tasks[0].description, self.tasks[0].completed, self.tasks[0].total))

    with Watched(disable=True) as progress:
        build.build_one(
            rtx, plan.graph_path(bundle, HEAD), build.profiles(bundle, HEAD, 128), target, progress, tmp_path
        )
        assert not progress.tasks  # its bar is gone
    assert all(text.startswith("head") for text, _, _ in seen)
    places = [completed for _, completed, total in seen if total is not None and completed <= total]
    assert places == sorted(places) and places[0] == 0 and places[-1] > 1


def test_too_small_a_disk_is_noticed_before_building(
    bundle: Bundle, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1_000_000))
    with pytest.raises(UserError, match=r"engines take about 0\.\d GB, the disk has 0\.0 GB free") as refusal:
        run(bundle, ORIN)
    one_line(refusal)
    assert not built


@pytest.mark.parametrize("name", ["SM87", "sm", "ampere", ""])
def test_unknown_gpus_are_refused(bundle: Bundle, name: str) -> None:
    with pytest.raises(UserError, match=f"--for {name}: tensorrt_rtx .* builds for .*SM86, SM89") as refusal:
        command(str(bundle.path), "--for", name)
    one_line(refusal)


def test_a_missing_or_broken_tensorrt_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: dict[str, ImportError] = {
        "tensorrt": ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt"),
        "tensorrt_rtx": ModuleNotFoundError("No module named 'tensorrt_rtx'", name="tensorrt_rtx"),
    }

    def importing(name: str) -> types.ModuleType:
        raise errors[name]

    monkeypatch.setattr(importlib, "import_module", importing)
    with pytest.raises(UserError, match="tensorrt or tensorrt_rtx is not installed; .*pip install tensorrt-rtx") as at:
        module.installed()
    one_line(at)
    errors["tensorrt"] = ImportError("libnvinfer.so.10: cannot open shared object file")
    with pytest.raises(UserError, match="tensorrt is installed but does not load: libnvinfer"):
        module.installed()
