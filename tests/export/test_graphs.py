"""Each part of a graph, traced alone from a layer's tensors and joined, is what Transformers computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLDecoderLayer,
)

from drivers.errors import UserError
from export import graphs
from export.vision import windows


@pytest.fixture(scope="module")
def tower() -> Any:
    """Random, with norms and biases that are not ones and zeros."""
    config = Qwen2_5_VLVisionConfig(
        depth=3,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        out_hidden_size=64,
        fullatt_block_indexes=[1],
        initializer_range=0.2,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, float(parameter.detach().mean().round()), 0.3)
    return model


def _of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _vision_parts(tower: Any, grid: graphs.ImageGrid) -> list[graphs.Part]:
    config, tensors = tower.config, tower.state_dict()
    blocks = [graphs.vision_block(config, grid, i, _of(tensors, f"blocks.{i}.")) for i in range(config.depth)]
    return [
        graphs.vision_start(config, grid, tensors),
        *blocks,
        graphs.vision_end(config, grid, _of(tensors, "merger.")),
    ]


# Windows are 4 by 4 tokens of 28 px: whole ones alone, cut at both edges, one smaller than a window, one token wide.
@pytest.mark.parametrize(("width", "height"), [(112, 224), (252, 140), (84, 56), (28, 252)])
def test_the_tower_of_any_size_is_that_of_transformers(tower: Any, width: int, height: int) -> None:
    grid = graphs.ImageGrid(width, height, 14, 2)
    models = [graphs.trace(part) for part in _vision_parts(tower, grid)]
    session = ort.InferenceSession(graphs.join(models, ["patches"], ["image_embeds"]).SerializeToString())
    patches = torch.randn(grid.n_patches, 1176, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = tower(patches, grid_thw=torch.tensor([[1, grid.patches_h, grid.patches_w]])).numpy()
    found = session.run(None, {"patches": patches.numpy()})[0]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_parts_say_in_torch_what_they_say_in_onnx(tower: Any) -> None:
    grid = graphs.ImageGrid(252, 140, 14, 2)
    patches = torch.randn(grid.n_patches, 1176, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = tower(patches, grid_thw=torch.tensor([[1, grid.patches_h, grid.patches_w]]))
        values: Any = (patches,)
        for part in _vision_parts(tower, grid):
            values = part.module(*values)
            values = values if isinstance(values, tuple) else (values,)
    torch.testing.assert_close(values[0], expected, atol=1e-5, rtol=0)


def test_the_weights_of_all_sizes_are_the_same(tower: Any) -> None:
    """By name and content, so that they can be stored once; what differs is small."""
    stored = []
    for size in ((112, 224), (252, 140)):
        models = [graphs.trace(part) for part in _vision_parts(tower, graphs.ImageGrid(*size, 14, 2))]
        tensors = [tensor for model in models for tensor in model.graph.initializer]
        stored.append({tensor.name: tensor.raw_data for tensor in tensors if len(tensor.dims) > 1})
    common = {name for name in stored[0].keys() & stored[1].keys() if "attend" not in name}
    assert {"start.embed", "block.2.qkv.weight", "block.0.mlp.down.weight", "end.fc1.weight"} <= common
    assert all(stored[0][name] == stored[1][name] for name in common)


@pytest.mark.parametrize("size", [(112, 224), (252, 140), (84, 56), (28, 252)])
def test_windows_hold_every_token_once(size: tuple[int, int]) -> None:
    grid = graphs.ImageGrid(*size, 14, 2)
    found = windows(grid, 112)
    assert sorted(found.token_order.tolist()) == list(range(grid.n_tokens))
    assert sum(n * h * w for n, h, w in found.shapes) == grid.n_tokens
    assert len({shape[1:] for shape in found.shapes}) == len(found.shapes)


def test_equal_weights_stay_weights() -> None:
    """torch stores them once behind an Identity, which quantization would not see through."""
    config = _text_config()
    tensors = {name: torch.ones_like(tensor) for name, tensor in Qwen2_5_VLDecoderLayer(config, 0).state_dict().items()}
    graph = graphs.trace(graphs.language_layer(config, 0, tensors)).graph
    weights = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert len(products) == 5 and all(node.input[1] in weights for node in products)


def _text_config(**changes: Any) -> Qwen2_5_VLTextConfig:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    rope = {"type": "mrope", "mrope_section": [2, 3, 3]}
    return Qwen2_5_VLTextConfig(**(sizes | {"num_hidden_layers": 2, "rope_scaling": rope} | changes))


@pytest.mark.parametrize(
    ("change", "says"),
    [({"hidden_act": "gelu"}, "hidden_act is gelu"), ({"num_attention_heads": 8}, "8 values a head")],
)
def test_what_the_layers_do_not_do_is_refused_in_one_line(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"text_config of config.json: .*{says}") as raised:
        graphs.language_layer(_text_config(**change), 0, {})
    assert "\n" not in str(raised.value)


def test_rotary_angles_are_those_of_transformers() -> None:
    rope = graphs.rope(_text_config(rope_theta=50.0))
    assert rope["sections"] == [2, 3, 3] and rope["scaling"] == 1.0
    np.testing.assert_allclose(rope["inv_freq"], 50.0 ** (-np.arange(8) / 8), rtol=1e-6)
