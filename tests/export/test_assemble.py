"""A bundle is made part by part: interrupted anywhere, it goes on there; slices of a head are the head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from export import assemble, plan
from export.assemble import Assembly
from export.plan import Plan, ends, parts, plan_export

SIZES = ((112, 84), (56, 56))


@pytest.fixture(scope="module")
def planned(tiny_checkpoint: Path) -> Plan:
    return plan_export(tiny_checkpoint, "fp32", SIZES, "onnx")


def make(planned: Plan, work: Path, before: Callable[[int], None] = lambda i: None) -> dict[str, bytes]:
    """The graphs' files; `before` is called before each part that is made."""
    assembly = Assembly(work)
    for i, part in enumerate(parts(planned, work)):

        def made(part=part, i=i):
            before(i)
            return part.make()

        assembly.add(part.graph, part.data, made)
    assembly.finish(ends(planned))
    return {path.name: path.read_bytes() for path in (work / "bundle").iterdir()}


@pytest.fixture(scope="module")
def whole(planned: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return make(planned, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("stop", [0, 2, 6, 9])
def test_an_interrupted_export_goes_on_where_it_stopped(
    planned: Plan, whole: dict[str, bytes], tmp_path: Path, stop: int
) -> None:

    def interrupt(i: int) -> None:
        if i == stop:
            for data in (tmp_path / "bundle").iterdir():  # half a part was written
                data.write_bytes(data.read_bytes() + b"half a part" * 1000)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(planned, tmp_path, interrupt)
    done: list[int] = []
    found = make(planned, tmp_path, done.append)
    assert done == list(range(stop, len(parts(planned, tmp_path))))
    assert found == whole


def test_a_finished_export_can_be_finished_again(planned: Plan, tmp_path: Path, whole: dict[str, bytes]) -> None:
    make(planned, tmp_path)
    assert make(planned, tmp_path) == whole


def test_parts_whose_weights_are_gone_are_made_again(planned: Plan, tmp_path: Path, whole: dict[str, bytes]) -> None:
    make(planned, tmp_path)
    for path in (tmp_path / "bundle").glob("*.data"):
        path.unlink()
    assert make(planned, tmp_path) == whole


def test_weights_are_shared_between_image_sizes(planned: Plan, whole: dict[str, bytes]) -> None:
    weights = 4 * planned.shards.n_values("model.visual.")
    assert weights < len(whole["vision.data"]) < 1.2 * weights
    assert all(len(whole[f"vision-{w}x{h}.onnx"]) < 100_000 for w, h in SIZES)
    assert not [name for name in whole if name.endswith(".data") and name != "vision.data"]


def test_weights_beside_the_graph_say_the_same(
    planned: Plan, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble, "INLINE_BELOW_BYTES", 0)
    beside = make(planned, tmp_path)
    assert {"head.data", "head_numbers.data", "language.data", "vision.data"} <= beside.keys()
    for name in ("head", "language"):
        apart = onnx.load(tmp_path / "bundle" / f"{name}.onnx").graph.initializer
        within = onnx.load_from_string(whole[f"{name}.onnx"]).graph.initializer
        assert [(t.name, t.raw_data) for t in apart] == [(t.name, t.raw_data) for t in within]


def _head(folder: Path, hidden: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(folder / "bundle" / "head.onnx"))
    logits: np.ndarray = session.run(["logits"], {"hidden": hidden})[0]
    return logits


@pytest.mark.parametrize("quantization", ["fp32", "fp16", "int8", "int4"])
def test_a_head_made_in_slices_is_the_head(
    tiny_checkpoint: Path, tmp_path: Path, quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_export(tiny_checkpoint, quantization, SIZES, "onnx")
    hidden = np.random.default_rng(0).normal(size=(3, planned.config.text_config.hidden_size)).astype(np.float32)
    found = []
    for rows in (10_000, 96):
        monkeypatch.setattr(plan, "HEAD_ROWS", rows)
        work = tmp_path / str(rows)
        assembly = Assembly(work)
        for part in parts(planned, work):
            if part.graph == "head.onnx":
                assembly.add(part.graph, part.data, part.make)
        assembly.finish(ends(planned))
        found.append(_head(work, hidden))
        assert found[-1].shape == (3, planned.config.text_config.vocab_size)
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
