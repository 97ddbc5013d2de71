"""A bundle's ``tensorrt`` graphs as an engine: what is kept on the device, and which pass runs with which shapes.

Everything in this file runs, in the tests, on ONNX Runtime in place of a GPU: the same exported graphs, behind the same
`Device`. What no machine without a GPU can run is `edge.engine.tensorrt.cuda`, the calls of CUDA and TensorRT alone.
"""

from __future__ import annotations

import numpy as np

from edge.engine.bundle import Bundle, ImageSize
from edge.engine.protocol import Floats
from edge.engine.sequence import SequenceEngine
from edge.engine.tensorrt.device import Buffer, Device, Program
from edge.engine.tensorrt.layout import (
    HEAD,
    HEAD_NUMBERS,
    HEAD_ROWS,
    LANGUAGE,
    PREFILL_BLOCK,
    PREFILL_PROFILE,
    STEP_BLOCK,
    STEP_PROFILE,
)
from edge.engine.tensorrt.plan import settings
from edge.preprocess import PATCH_VALUES


class TensorRTEngine(SequenceEngine):
    """An `edge.engine.protocol.Engine` on buffers that are made once and keep their addresses.

    The cache, (2 * layers * kv heads, room, head_dim), is read by the language graph and never written by it: what it
    puts out for the new tokens is copied into the cache at their places. So truncating is forgetting a length.
    """

    def __init__(self, bundle: Bundle, device: Device | None = None) -> None:
        """Load the graphs; those of image sizes after the first when they are first asked for.

        Args:
            bundle: of `load_bundle`, with graphs for TensorRT and, for this GPU, engines of `vlar1 build`.
            device: None takes this machine's GPU.

        Raises:
            UserError: the bundle has no such graphs, there is no GPU, or no engine was built for it.
        """
        room, float16 = settings(bundle)
        super().__init__(bundle, room)
        if device is None:
            from edge.engine.tensorrt.cuda import CudaDevice

            device = CudaDevice(bundle)
        self._device = device
        kind = np.float16 if float16 else np.float32
        hidden, pairs, kv_heads = bundle.hidden, bundle.head_dim // 2, bundle.kv_heads
        lines, largest = 2 * bundle.layers * kv_heads, min(PREFILL_BLOCK, room)
        self._cache = device.zeros((lines, room, bundle.head_dim), kind)
        self._inputs = {
            "inputs_embeds": device.zeros((largest, hidden), np.float32),
            "cos": device.zeros((largest, pairs), np.float32),
            "sin": device.zeros((largest, pairs), np.float32),
        }
        self._past_length = device.zeros((1,), np.int32)
        self._new = device.zeros((lines, largest, bundle.head_dim), kind)
        self._pass_hidden = device.zeros((largest, hidden), np.float32)
        self._hidden = device.zeros((room, hidden), np.float32)  # of a whole prefill, which may take several passes
        buffers = self._inputs | {"past_length": self._past_length, "new_cache": self._new, "hidden": self._pass_hidden}
        for i in range(2 * bundle.layers):
            name = f"past_{('key', 'value')[i % 2]}.{i // 2}"
            buffers[name] = device.rows(self._cache, i * kv_heads, (i + 1) * kv_heads)
        self._language = device.load(LANGUAGE, buffers)
        # Rows are brought here: TensorRT wants aligned addresses, and a recorded run the same one each time.
        self._rows = device.zeros((HEAD_ROWS, hidden), np.float32)
        self._heads = [self._load_head(HEAD, bundle.vocab), self._load_head(HEAD_NUMBERS, len(bundle.number_tokens))]
        self._visions = {bundle.images[0]: self._load_vision(bundle.images[0])}

    def _load_head(self, graph: str, n_tokens: int) -> tuple[Program, Buffer, int]:
        logits = self._device.zeros((HEAD_ROWS, n_tokens), np.float32)
        return self._device.load(graph, {"hidden": self._rows, "logits": logits}), logits, n_tokens

    def _load_vision(self, size: ImageSize) -> tuple[Program, Buffer, Buffer]:
        rows, cols = self._bundle.grid_of(size)
        patches = self._device.zeros((rows * cols * self._bundle.merge**2, PATCH_VALUES), np.float32)
        embeds = self._device.zeros((rows * cols, self._bundle.hidden), np.float32)
        return self._device.load(size.vision, {"patches": patches, "image_embeds": embeds}), patches, embeds

    def _encode(self, size: ImageSize, patches: Floats) -> Floats:
        if size not in self._visions:  # each has the tower's weights to itself
            self._visions[size] = self._load_vision(size)
        program, taken, embeds = self._visions[size]
        self._device.write(taken, np.ascontiguousarray(patches, np.float32))
        program.run({}, 0, repeated=True)
        found: Floats = self._device.read(embeds, embeds.shape)
        return found

    def _forward(self, start: int, embeds: Floats, cos: Floats, sin: Floats) -> None:
        for first in range(0, len(embeds), PREFILL_BLOCK):
            part = slice(first, first + PREFILL_BLOCK)
            self._pass(start + first, first, embeds[part], cos[part], sin[part])

    def _pass(self, start: int, row: int, embeds: Floats, cos: Floats, sin: Floats) -> None:
        n = len(embeds)
        # A block is padded to its full size, so that it has one recording of its own beside that of one token. What
        # stands in the padding is of earlier passes; it comes after every token that counts, and none looks at it.
        is_step = n <= STEP_BLOCK
        size = (1 if n == 1 else STEP_BLOCK) if is_step else n
        for name, array in (("inputs_embeds", embeds), ("cos", cos), ("sin", sin)):
            self._device.write(self._inputs[name], np.ascontiguousarray(array, np.float32))
        self._device.write(self._past_length, np.array([start], np.int32))
        shapes = {name: (size, *buffer.shape[1:]) for name, buffer in self._inputs.items()}
        self._language.run(shapes, STEP_PROFILE if is_step else PREFILL_PROFILE, repeated=is_step)
        self._device.insert(self._cache, start, self._new, n, size)
        self._device.copy_rows(self._hidden, row, self._pass_hidden, 0, n)

    def _head(self, numbers: bool, first: int, stop: int) -> Floats:
        program, buffer, n_tokens = self._heads[numbers]
        parts = []
        for row in range(first, stop, HEAD_ROWS):
            n = min(HEAD_ROWS, stop - row)
            self._device.copy_rows(self._rows, 0, self._hidden, row, row + n)
            program.run({"hidden": (n, self._bundle.hidden)}, 0, repeated=n == 1)
            parts.append(self._device.read(buffer, (n, n_tokens)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
