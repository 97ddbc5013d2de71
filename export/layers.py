"""Where does the precision go? A bundle's hidden states after each block and layer, beside those of Transformers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from edge.engine.bundle import LANGUAGE, Bundle, ImageSize
from edge.engine.protocol import Floats
from edge.engine.sequence import SequenceEngine
from export.modules import ImageGrid
from export.quantize import Quantization
from export.vision import patch_order

# Mean cosine over the tokens below which a layer is named. Twice what the shipped model loses in all its layers.
LEAST: dict[Quantization, float] = {"fp32": 0.99999, "fp16": 0.9999, "int8": 0.999, "int4": 0.97}
EMBEDS, NORM = "image embeddings", "language norm"


@dataclass(frozen=True)
class Layers:
    """Mean cosine over patches or tokens of one prompt's hidden states, in the order they are computed.

    Attributes:
        cosines: by name: ``vision block 0`` …, ``image embeddings``, ``language layer 0`` …, ``language norm``.
        least: where it falls below this, precision is lost.
    """

    cosines: dict[str, float]
    least: float

    @property
    def first_below(self) -> str | None:
        """The first whose cosine is below `least`."""
        return next((name for name, cosine in self.cosines.items() if cosine < self.least), None)


def hidden_states(
    bundle: Bundle, ids: Sequence[int], patches: Floats, size: ImageSize, window_px: int
) -> dict[str, Floats]:
    """The bundle's hidden states for one prompt: (patches or tokens, hidden) each, patches in the image's order.

    Args:
        bundle: with graphs for ONNX Runtime.
        ids: the prompt.
        patches: of its image, whose size is `size`.
        window_px: of the vision tower's window attention.
    """
    engine = _LayersEngine(bundle, len(ids), ImageGrid(size.width_px, size.height_px, bundle.patch_px, bundle.merge))
    engine.prefill(ids, engine.encode_image(patches))
    order = patch_order(engine.grid, window_px).numpy()
    blocks = {name: x[np.argsort(order)] for name, x in engine.found.items() if name.startswith("vision")}
    return blocks | {name: x for name, x in engine.found.items() if name not in blocks}


class _LayersEngine(SequenceEngine):
    """Runs copies of a bundle's graphs, which read the bundle's weights, that put out what goes from layer to layer."""

    def __init__(self, bundle: Bundle, room: int, grid: ImageGrid) -> None:
        super().__init__(bundle, room)
        self.grid = grid
        self.found: dict[str, Floats] = {}

    def _encode(self, size: ImageSize, patches: Floats) -> Floats:
        embeds = self._run(size.vision, "vision block", {"patches": patches}, "image_embeds")
        self.found[EMBEDS] = embeds
        return embeds

    def _forward(self, start: int, embeds: Floats, cos: Floats, sin: Floats) -> None:
        bundle, n = self._bundle, len(embeds)
        inputs = {"inputs_embeds": embeds, "cos": cos, "sin": sin}
        inputs |= {"seqlens_k": np.array([n - 1], np.int32), "total_length": np.array(n, np.int32)}
        cache = np.zeros((1, bundle.kv_heads, n, bundle.head_dim), np.float32)
        inputs |= {f"past_{kind}.{i}": cache for i in range(bundle.layers) for kind in ("key", "value")}
        self.found[NORM] = self._run(LANGUAGE, "language layer", inputs, "hidden")

    def _head(self, numbers: bool, first: int, stop: int) -> Floats:
        raise NotImplementedError  # nobody asks for logits

    def _run(self, graph: str, what: str, inputs: dict[str, Floats], output: str) -> Floats:
        """One graph's `output`; what leaves its layers goes to `found`."""
        model = onnx.load(self._bundle.path / graph, load_external_data=False)
        values = {name for node in model.graph.node for name in node.input}
        n_layers = next(i for i in itertools.count() if f"delta.{i + 1}" not in values)
        names = [f"{kind}.{i + 1}" for i in range(n_layers) for kind in ("residual", "delta")]
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self._bundle.path.resolve())
        )
        session = ort.InferenceSession(model.SerializeToString(), options)
        half = {value.name for value in session.get_inputs() if value.type == "tensor(float16)"}
        feed = {name: array.astype(np.float16) if name in half else array for name, array in inputs.items()}
        result: Floats
        result, *found = session.run([output, *names], feed)
        for i in range(n_layers):
            # What one layer gives is added up in the next one's norm.
            self.found[f"{what} {i}"] = (found[2 * i] + found[2 * i + 1]).reshape(-1, found[2 * i].shape[-1])
        return result


def mean_cosine(a: Floats, b: torch.Tensor) -> float:
    """Over the rows of two matrices."""
    cosines = torch.nn.functional.cosine_similarity(torch.from_numpy(a).double(), b.double(), dim=-1)
    return float(cosines.mean())
