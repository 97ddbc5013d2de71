"""What is verified beyond logits: where precision goes, what answers are worth, and what a person reads of it."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from rich.console import Console

from drivers.errors import UserError
from edge import contract
from edge.contract import Affordance, Trajectory
from edge.engine.bundle import MANIFEST, load_bundle
from export import layers, reference, report, tasks, verify
from export.manifest import list_files
from export.plan import plan_export
from export.questions import made_up

FINE = verify.Agreement(2, 20, 0.1, 20.0, 0.9999, 0.999, 0.99, [None, 3], "much")


def result(before: tasks.Score | None, after: tasks.Score, cosine: float = 0.9999) -> verify.Verification:
    found = layers.Layers({"vision block 0": 1.0, "language layer 4": cosine, "language norm": 0.2}, 0.999)
    if cosine > 0.999:
        found = replace(found, cosines={"vision block 0": 1.0, "language layer 4": cosine})
    return verify.Verification(FINE, found, tasks.Tasks(before, after, "a note"), None)


def test_a_damaged_layer_is_the_first_to_be_named(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Both in the vision tower, whose patches lie in other orders on the two sides, and in the language model."""
    plan = plan_export(tiny_checkpoint, "fp32", [(224, 168)], "onnx")
    for graph, weight, name in (
        ("vision-224x168.onnx", "block.1.mlp.down.weight", "vision block 1"),
        ("language.onnx", "layer.1.mlp.down.weight", "language layer 1"),
    ):
        folder = tmp_path / weight
        folder.mkdir()
        for path in tiny_bundle.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        model = onnx.load(folder / graph)
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == weight)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * -9, weight))
        onnx.save(model, folder / graph)
        manifest = json.loads((folder / MANIFEST).read_text()) | {"files": list_files(folder)}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        bundle = load_bundle(folder)
        patches = np.random.default_rng(0).normal(size=(192, 1176)).astype(np.float32)
        ids = [300, 301, bundle.manifest["tokens"][contract.VISION_START], *[bundle.image_token] * 48, 302]
        text = reference.Text(bundle.images[0], ids, patches, [303])
        states = layers.hidden_states(bundle, ids, patches, bundle.images[0], plan.config.vision_config.window_size)
        _, cosines = reference.read_texts(plan.shards, bundle, [text, text], states, lambda: None)
        assert layers.Layers(cosines, 0.99999).first_below == name
        assert cosines["vision block 0"] == pytest.approx(1, abs=1e-6)


def test_the_mean_cosine_is_over_rows() -> None:
    a = np.array([[1, 0], [0, 2]], np.float32)
    assert layers.mean_cosine(a, torch.tensor([[3.0, 0.0], [5.0, 0.0]])) == pytest.approx(0.5)


def test_labels_of_simulated_tables_are_where_things_are() -> None:
    labels = [(question.task, question.label) for question in made_up(8)]
    assert [label is None for _, label in labels] == [False] * 6 + [True] * 2
    for task, label in labels[:6]:
        assert isinstance(label, Affordance if task == "affordance" else Trajectory)
        if isinstance(label, Affordance):
            assert 0.02 < label.width < 0.3 and 0.02 < label.height < 0.3


def test_scores_are_those_of_the_answers(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = made_up(4)
    answers = iter([asked[0].label, None, Affordance(0.01, 0.01, 0.01, 0.01), asked[3].label])

    class Said:
        def __init__(self) -> None:
            self.answer, self.output = self, next(answers)

    monkeypatch.setattr(tasks, "decide", lambda *_: Said())
    steps: list[int] = []
    found = tasks.score(load_bundle(tiny_bundle), asked, lambda: steps.append(1))
    assert (found.boxes, found.paths, len(steps)) == (2, 2, 4)
    assert found.iou == pytest.approx(0.5) and found.distance == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("iou", "distance", "good"),
    [
        ((0.8, 0.76), (0.1, 0.14), True),
        ((0.8, 0.74), (0.1, 0.1), False),
        ((0.8, 0.8), (0.1, 0.16), False),
        ((0.2, 0.0), (0.5, 0.9), True),  # was no better than chance
        ((0.8, 0.9), (None, None), True),
    ],
)
def test_answers_that_got_worse_are_refused(
    iou: tuple[float, float], distance: tuple[float | None, float | None], good: bool
) -> None:
    before, after = (tasks.Score(12, *pair) for pair in ((iou[0], 12, distance[0]), (iou[1], 12, distance[1])))
    verify.require(result(None, after), "int8")
    if good:
        verify.require(result(before, after), "int8")
        return
    with pytest.raises(UserError, match=f"mean IoU of 12 boxes {iou[0]:.3f} before, {iou[1]:.3f} after") as raised:
        verify.require(result(before, after, 0.9), "int8")
    assert "below cosine 0.999 first at language layer 4 (0.9000)" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_graphs_for_tensorrt_have_the_same_bound() -> None:
    score = tasks.Score(0, None, 0, None)
    bad = replace(result(None, score), tensorrt=replace(FINE, logits_cosine_mean=0.5))
    with pytest.raises(UserError, match="the int8 bundle for TensorRT does not agree"):
        verify.require(bad, "int8")


def test_the_table_and_the_manifest_say_the_same(tiny_bundle: Path) -> None:
    out = StringIO()
    scores = tasks.Score(12, 0.8, 11, 0.1), tasks.Score(12, 0.75, 11, 0.12)
    found = result(*scores, cosine=0.9)
    report.show(Console(file=out, width=100), replace(found, tensorrt=FINE), "int8")
    text = out.getvalue()
    for part in ("99.0% of 20", "0.99990", "language layer 4", "0.800 before, 0.750 after", "11 paths", "a note"):
        assert part in text, part
    assert found.as_dict()["layers"]["first_below"] == "language layer 4"
    assert found.as_dict()["tasks"]["before"]["iou"] == 0.8
    verification = json.loads((tiny_bundle / MANIFEST).read_text())["verification"]
    assert verification["layers"]["first_below"] is None and verification["layers"]["cosines"]["vision block 2"] > 0.999
    assert verification["tasks"]["before"] is None and verification["tasks"]["after"]["boxes"] == 2
    assert verification["tensorrt"] is None and verification["images"] == "simulated tables"
    report.show(Console(file=out, width=100), replace(found, tasks=None), "int8")
    assert "not judged" in out.getvalue()
