"""The vision tower with its image size written in computes what Transformers' tower computes."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from export import graphs
from export.modules import ImageGrid
from export.vision import windows


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()


@pytest.mark.parametrize(("height", "width"), [(6, 8), (4, 4), (1, 1), (5, 9), (3, 13)])
def test_windows_are_those_of_transformers(model, height: int, width: int) -> None:
    order, lengths = model.model.visual.get_window_index(torch.tensor([[1, 2 * height, 2 * width]]))
    ends = sorted(set(lengths))  # Transformers lists empty windows too
    expected = {frozenset(order[a // 4 : b // 4].tolist()) for a, b in zip([0, *ends], ends, strict=False) if b > a}
    ours = windows(ImageGrid(28 * width, 28 * height, 14, 2), 112)
    found, start = set(), 0
    for n, rows, cols in ours.shapes:
        for _ in range(n):
            found.add(frozenset(ours.token_order[start : start + rows * cols].tolist()))
            start += rows * cols
    assert found == expected and start == height * width


@pytest.mark.parametrize("size_px", [(224, 168), (28, 28), (252, 140), (112, 112)])
def test_the_tower_gives_the_embeddings_of_transformers(model, size_px: tuple[int, int]) -> None:
    grid, visual, config = ImageGrid(*size_px, 14, 2), model.model.visual, model.config.vision_config
    patches = torch.randn(grid.n_patches, 1176, generator=torch.Generator().manual_seed(1))
    parts = [
        graphs.vision_start(config, grid, visual.state_dict()),
        *(graphs.vision_block(config, grid, i, block.state_dict()) for i, block in enumerate(visual.blocks)),
        graphs.vision_end(config, grid, visual.merger.state_dict()),
    ]
    with torch.no_grad():
        expected = visual(patches, grid_thw=torch.tensor([[1, grid.patches_h, grid.patches_w]]))
        values = {"patches": patches}
        for part in parts:
            found = part.module(*(values[name] for name in part.inputs))
            values |= dict(zip(part.outputs, found if isinstance(found, tuple) else (found,), strict=True))
    torch.testing.assert_close(values["image_embeds"], expected, atol=2e-5, rtol=2e-5)
    # What is traced names ONNX Runtime's own operators, which this build (1.23 under Python 3.10) must have.
    graph = graphs.join([graphs.trace(part) for part in parts], ["patches"], ["image_embeds"])
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"patches": patches.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=2e-5, rtol=2e-5)
