"""A bundle running on ONNX Runtime: the key-value cache written in place, nothing copied from token to token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from drivers.errors import UserError
from edge.engine.bundle import LANGUAGE, Bundle, ImageSize
from edge.engine.protocol import Floats
from edge.engine.sequence import SequenceEngine
from edge.engine.sessions import CPU, DEVICES, Sessions, element_type

_SMALL_BYTES = 100_000_000
_ROOM = 2048


class OnnxEngine(SequenceEngine):
    """One loaded bundle and the key-value cache of one sequence; see `edge.engine.protocol.Engine`.

    The cache is two buffers a layer, made once, in which ONNX Runtime writes the keys and values of new tokens where
    they stay. Beside them lie the rotary tables, a row a token, which the operator reads by a token's place.

    Every pass has an even number of rows; one more is computed, and forgotten, where there is an odd number of tokens.
    ONNX Runtime adds up a product of a single row in another order than the same row among several, and where
    activations are quantized that last bit grows: after three int4 layers of the 3B model's width, hidden states
    differed by 2 %. With an even number of rows all results are the same to the bit, whether tokens come one by one, in
    drafts or after a kept prefix, on any number of threads.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        room: int | None = None,
        providers: Sequence[str] = (CPU,),
    ) -> None:
        """Load the graphs; those of image sizes after the first when they are first asked for.

        Args:
            bundle: of `load_bundle`.
            threads: to compute with; None takes one for a small model, whose passes are over before threads have met,
                and one a physical core for others.
            room: tokens that the cache holds; None takes what the model takes, but no more than 2048.
            providers: ONNX Runtime's execution providers, the preferred first.

        Raises:
            UserError: the bundle has no graphs for ONNX Runtime, a graph or a provider cannot be loaded, or a graph is
                not the one that the manifest describes.
        """
        if LANGUAGE not in bundle.manifest["files"]:
            raise UserError(
                f"bundle {bundle.path}: has graphs for {', '.join(bundle.manifest['engines'])} alone, none for ONNX "
                "Runtime; export it again with --engine both"
            )
        super().__init__(bundle, min(bundle.max_positions, _ROOM) if room is None else room)
        self._sessions = Sessions(bundle, threads if threads is not None else _threads(bundle), providers)
        self._visions = {bundle.images[0]: self._sessions.vision(bundle.images[0])}
        self._language = self._sessions.language()
        self._heads = (self._sessions.head(), self._sessions.head_numbers())
        self._hidden: Floats = np.zeros((0, bundle.hidden), np.float32)
        self._bind()

    def _encode(self, size: ImageSize, patches: Floats) -> Floats:
        if size not in self._visions:
            self._visions[size] = self._sessions.vision(size)
        embeds: Floats = self._visions[size].run(["image_embeds"], {"patches": patches})[0]
        return embeds

    def _forward(self, start: int, embeds: Floats, cos: Floats, sin: Floats) -> None:
        n, n_rows = len(embeds), len(embeds) + len(embeds) % 2
        self._inputs["cos"][start : start + n], self._inputs["sin"][start : start + n] = cos, sin
        self._inputs["seqlens_k"][0] = start + n_rows - 1
        self._inputs["total_length"][...] = start + n_rows
        if n_rows != len(self._hidden):
            rows = (n_rows, self._bundle.hidden)
            hidden = np.empty(rows, np.float32)
            self._hidden = hidden[:0]  # should this be interrupted, the next pass binds again
            self._inputs["inputs_embeds"] = np.empty(rows, np.float32)
            self._binding.bind_cpu_input("inputs_embeds", self._inputs["inputs_embeds"])
            self._binding.bind_ortvalue_output("hidden", ort.OrtValue.ortvalue_from_numpy(hidden))
            self._hidden = hidden
        self._inputs["inputs_embeds"][:n] = embeds
        self._inputs["inputs_embeds"][n:] = embeds[-1]
        if self._device != "cpu":  # what is bound there is a copy
            self._bind_inputs()
        self._language.run_with_iobinding(self._binding)

    def _head(self, numbers: bool, first: int, stop: int) -> Floats:
        head = self._heads[numbers]
        n_tokens = len(self._bundle.number_tokens) if numbers else self._bundle.vocab
        n, n_before = stop - first, 0
        if n % 2:  # one row more: the next, or where there is none the one before
            n_before = int(stop == len(self._hidden))
            first, stop = first - n_before, stop + 1 - n_before
        logits = np.empty((stop - first, n_tokens), np.float32)
        binding = head.io_binding()
        binding.bind_cpu_input("hidden", self._hidden[first:stop])
        binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits))
        head.run_with_iobinding(binding)
        return logits[n_before : n_before + n]

    def _bind(self) -> None:
        """Make the buffers and show them to the language graph, once."""
        bundle = self._bundle
        types = {value.name: element_type(value) for value in self._language.get_inputs()}
        self._device = DEVICES.get(self._sessions.providers[0], "cpu")
        self._binding = self._language.io_binding()
        cache = (1, bundle.kv_heads, self._room + 1, bundle.head_dim)  # one place for the row that is forgotten
        # Held here: a binding of ONNX Runtime 1.23 does not keep what is bound alive.
        self._cache = []
        for name in (f"{kind}.{i}" for i in range(bundle.layers) for kind in ("key", "value")):
            # numpy's zeros are memory that the system gives page by page, as it is written.
            zeros = np.zeros(cache, types[f"past_{name}"])
            value = ort.OrtValue.ortvalue_from_numpy(zeros, self._device, 0)
            self._binding.bind_ortvalue_input(f"past_{name}", value)
            self._binding.bind_ortvalue_output(name, value)
            self._cache.append(value)
        rotary = (self._room + 1, bundle.head_dim // 2)
        shapes = {"cos": rotary, "sin": rotary, "seqlens_k": (1,), "total_length": ()}
        self._inputs = {name: np.zeros(shape, types[name]) for name, shape in shapes.items()}
        self._bind_inputs()

    def _bind_inputs(self) -> None:
        for name, array in self._inputs.items():
            self._binding.bind_cpu_input(name, array)


def _threads(bundle: Bundle) -> int:
    return int(bundle.size_bytes < _SMALL_BYTES)
