"""A bundle running on ONNX Runtime: encode an image, prefill a prompt, step token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from drivers.errors import UserError
from edge.engine.bundle import LANGUAGE, VISION, Bundle
from edge.engine.mrope import mrope_positions
from edge.preprocess import PATCH_VALUES

Floats = NDArray[np.float32]
_SMALL_BYTES = 100_000_000


class Engine(Protocol):
    """What decoding asks of a loaded model."""

    @property
    def bundle(self) -> Bundle: ...

    def encode_image(self, patches: Floats) -> Floats:
        """(n_patches, patch values) -> (n_image_tokens, hidden)."""
        ...

    def prefill(self, ids: Sequence[int], image_embeds: Floats) -> Floats:
        """Start a new sequence with a prompt; the logits (vocab,) after its last token."""
        ...

    def extend(self, tokens: Sequence[int]) -> Floats:
        """Append several tokens in one pass; the logits (vocab,) after the last."""
        ...

    def step(self, token: int) -> Floats:
        """Append one token; the logits (vocab,) after it."""
        ...


class OnnxEngine:
    """One loaded bundle and the key-value cache of one sequence. Not for use from several threads at once.

    The part of a prompt before its image is computed in a pass of its own and kept: the next prompt with the same
    instruction starts from there, with the same result as the first time.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        """Load both graphs.

        Args:
            bundle: of `load_bundle`.
            threads: to compute with; None takes one for a small model, whose passes are over before threads have met,
                and one a physical core for others.

        Raises:
            UserError: a graph cannot be loaded, or is not the one that the manifest describes.
        """
        self.bundle = bundle
        options = ort.SessionOptions()
        small = sum((bundle.path / name).stat().st_size for name in bundle.manifest["files"]) < _SMALL_BYTES
        options.intra_op_num_threads = threads if threads is not None else int(small)
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._vision = _session(bundle.path / VISION, options)
        self._language = _session(bundle.path / LANGUAGE, options)
        _check_graphs(bundle, self._vision, self._language)
        self._outputs = [output.name for output in self._language.get_outputs()]
        self._no_image = np.zeros((0, bundle.hidden), np.float32)
        self._prefix: tuple[int, ...] = ()
        self._prefix_cache: list[ort.OrtValue] = []
        self.reset()

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._length

    def reset(self) -> None:
        """Forget the sequence (what is kept of prompts before their image stays)."""
        shape = (self.bundle.kv_heads, 0, self.bundle.head_dim)
        empty = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
        self._cache: list[ort.OrtValue] = [empty] * (2 * self.bundle.layers)
        self._length = 0
        self._position = 0

    def encode_image(self, patches: Floats) -> Floats:
        """Image embeddings of one frame.

        Args:
            patches: (n_patches, patch values) float32, of `edge.preprocess`.

        Returns:
            (n_image_tokens, hidden) float32.
        """
        embeds: Floats = self._vision.run(["image_embeds"], {"patches": patches})[0]
        return embeds

    def prefill(self, ids: Sequence[int], image_embeds: Floats) -> Floats:
        """Start a new sequence: the logits (vocab,) after the last of `ids`.

        Args:
            ids: the prompt's tokens, the image placeholder once for each row of `image_embeds`.
            image_embeds: (n_image_tokens, hidden) of `encode_image`; no rows for a prompt without an image.

        Raises:
            ValueError: `ids` is empty, or placeholders and embeddings do not match.
        """
        ids = [int(token) for token in ids]
        n_placeholders = ids.count(self.bundle.image_token)
        if not ids or n_placeholders != len(image_embeds):
            raise ValueError(
                f"{len(ids)} tokens with {n_placeholders} image placeholders, {len(image_embeds)} embeddings"
            )
        positions = mrope_positions(ids, self.bundle.image_token, self.bundle.grid)
        self.reset()
        start = ids.index(self.bundle.image_token) if n_placeholders else 0
        if start:
            prefix = tuple(ids[:start])
            if prefix != self._prefix:
                self._run(ids[:start], self._no_image, positions[:, :start])
                self._prefix, self._prefix_cache = prefix, self._cache
            self._cache, self._length = self._prefix_cache, start
        logits = self._run(ids[start:], image_embeds, positions[:, start:])
        self._position = int(positions.max()) + 1
        return logits

    def extend(self, tokens: Sequence[int]) -> Floats:
        """Append text tokens in one pass: the logits (vocab,) after the last."""
        positions = np.broadcast_to(self._position + np.arange(len(tokens)), (3, len(tokens)))
        logits = self._run(tokens, self._no_image, positions)
        self._position += len(tokens)
        return logits

    def step(self, token: int) -> Floats:
        """Append one text token: the logits (vocab,) after it."""
        return self.extend((token,))

    def _run(self, tokens: Sequence[int], image_embeds: Floats, positions: NDArray[np.int64]) -> Floats:
        feed = {
            "input_ids": _value(np.array(tokens, np.int64)),
            "image_embeds": _value(image_embeds),
            "position_ids": _value(np.ascontiguousarray(positions, np.int64)),
        }
        for i in range(self.bundle.layers):
            feed[f"past_key.{i}"] = self._cache[2 * i]
            feed[f"past_value.{i}"] = self._cache[2 * i + 1]
        logits, *cache = self._language.run_with_ort_values(self._outputs, feed)
        self._cache = cache
        self._length += len(tokens)
        result: Floats = logits.numpy()
        return result


def _value(array: NDArray[np.generic]) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(array)


def _session(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions derive from Exception alone
        line = str(error).splitlines()[0]
        raise UserError(f"bundle {path}: ONNX Runtime cannot load it: {line}") from None


def _check_graphs(bundle: Bundle, vision: ort.InferenceSession, language: ort.InferenceSession) -> None:
    """Raise UserError unless inputs and outputs have the names and sizes that follow from the manifest."""
    cache = (bundle.kv_heads, None, bundle.head_dim)
    past = {f"past_{kind}.{i}": cache for i in range(bundle.layers) for kind in ("key", "value")}
    present = {f"{kind}.{i}": cache for i in range(bundle.layers) for kind in ("key", "value")}
    n_patches = bundle.n_image_tokens * bundle.merge**2
    text = {"input_ids": (None,), "image_embeds": (None, bundle.hidden), "position_ids": (3, None)}
    for name, values, expected in (
        (VISION, vision.get_inputs(), {"patches": (n_patches, PATCH_VALUES)}),
        (VISION, vision.get_outputs(), {"image_embeds": (bundle.n_image_tokens, bundle.hidden)}),
        (LANGUAGE, language.get_inputs(), text | past),
        (LANGUAGE, language.get_outputs(), {"logits": (bundle.vocab,)} | present),
    ):
        shapes = {value.name: value.shape for value in values}
        for tensor in [*expected, *shapes]:
            # A size that the graph leaves open is a text or None there.
            found = [size if isinstance(size, int) else None for size in shapes.get(tensor, ())]
            wanted = expected.get(tensor, ())
            fits = tensor in expected and tensor in shapes and len(found) == len(wanted)
            if not fits or any(None not in pair and pair[0] != pair[1] for pair in zip(found, wanted, strict=True)):
                raise UserError(
                    f"bundle {bundle.path / name}: {tensor} is not as the manifest's fields image and model say; "
                    "export the bundle again"
                )
