"""ONNX Runtime sessions of a bundle: settings, providers, and whether a graph is the one the manifest describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from drivers.errors import UserError
from edge.engine.bundle import HEAD, HEAD_NUMBERS, LANGUAGE, Bundle, ImageSize
from edge.preprocess import PATCH_VALUES

CPU = "CPUExecutionProvider"
# Of ONNX Runtime, by measurement (benchmarks/steps.py).
SETTINGS = {
    # Threads wait awake for so long: over the pauses between operators, but not between passes, where they would hold
    # the cores that the next graph, a camera or the control loop needs.
    "session.intra_op.spin_duration_us": "50",
    # Weights are laid out anew for the processor at loading: by all threads, a quarter sooner.
    "session.prepack.enable_parallel": "1",
}
if tuple(int(n) for n in ort.__version__.split(".")[:2]) < (1, 31):
    # 1.23, the last for Python 3.10, ignores that duration and would wait awake for 25 ms after each pass.
    SETTINGS["session.force_spinning_stop"] = "1"
# Where a provider's cache lies, in ONNX Runtime's words.
DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
}
Shape = tuple[int | None, ...]
Values = Mapping[str, Shape]


class Sessions:
    """Opens graphs of one bundle, all with the same providers and settings."""

    def __init__(self, bundle: Bundle, threads: int, providers: Sequence[str]) -> None:
        """Raises UserError where this build of ONNX Runtime lacks a provider, or one does not take the bundle."""
        self._bundle, self.providers = bundle, tuple(providers)
        for name in providers:
            if name not in ort.get_available_providers():
                raise UserError(
                    f"engine: this onnxruntime has no {name}, only {', '.join(ort.get_available_providers())}; "
                    "install the build for your hardware, for example onnxruntime-gpu"
                )
            if name in DEVICES and bundle.quantization != "fp16":
                # Its attention has no float32. ONNX Runtime leaves that to the processor, on copies: what it writes
                # into the cache there is lost, and answers come out wrong (seen on an H200) without an error.
                raise UserError(
                    f"bundle {bundle.path}: is {bundle.quantization}, and {name} takes fp16 alone; "
                    "export it with --quant fp16"
                )
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.log_severity_level = 4
        for name, value in SETTINGS.items():
            self._options.add_session_config_entry(name, value)

    def vision(self, size: ImageSize) -> ort.InferenceSession:
        """patches -> image_embeds, of one image size."""
        bundle = self._bundle
        rows, cols = bundle.grid_of(size)
        inputs = {"patches": (rows * cols * bundle.merge**2, PATCH_VALUES)}
        return self._open(size.vision, inputs, {"image_embeds": (rows * cols, bundle.hidden)})

    def language(self) -> ort.InferenceSession:
        """inputs_embeds, rotary tables, lengths, cache -> hidden, cache."""
        bundle = self._bundle
        cache = (1, bundle.kv_heads, None, bundle.head_dim)
        rows, rotary = (None, bundle.hidden), (None, bundle.head_dim // 2)
        inputs: dict[str, Shape] = {"inputs_embeds": rows, "cos": rotary, "sin": rotary}
        inputs |= {"seqlens_k": (1,), "total_length": ()}
        pairs = [f"{kind}.{i}" for i in range(bundle.layers) for kind in ("key", "value")]
        inputs |= {f"past_{name}": cache for name in pairs}
        return self._open(LANGUAGE, inputs, {"hidden": rows} | {name: cache for name in pairs})

    def head(self) -> ort.InferenceSession:
        """hidden -> logits of the whole vocabulary."""
        return self._open_head(HEAD, self._bundle.vocab)

    def head_numbers(self) -> ort.InferenceSession:
        """hidden -> logits of `Bundle.number_tokens`."""
        return self._open_head(HEAD_NUMBERS, len(self._bundle.number_tokens))

    def _open_head(self, name: str, n_tokens: int) -> ort.InferenceSession:
        return self._open(name, {"hidden": (None, self._bundle.hidden)}, {"logits": (None, n_tokens)})

    def _open(self, name: str, inputs: Values, outputs: Values) -> ort.InferenceSession:
        path = self._bundle.path / name
        try:
            session = ort.InferenceSession(str(path), self._options, providers=list(self.providers))
        except Exception as error:  # ONNX Runtime's own exceptions derive from Exception alone
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"bundle {path}: ONNX Runtime cannot load it: {line}") from None
        # A provider whose libraries do not load is left out with no more than a line in the log.
        missing = [provider for provider in self.providers if provider not in session.get_providers()]
        if missing:
            raise UserError(
                f"engine: {missing[0]} is in this onnxruntime but did not load (its libraries or the device are "
                "missing, or of another version); ask for another provider"
            )
        for found, expected in ((session.get_inputs(), inputs), (session.get_outputs(), outputs)):
            shapes = {value.name: value.shape for value in found}
            for tensor in [*expected, *shapes]:
                if not _fits(shapes.get(tensor), expected.get(tensor)):
                    raise UserError(
                        f"bundle {path}: {tensor} is not as the manifest's fields images and model say; "
                        "export the bundle again"
                    )
        return session


def element_type(value: Any) -> type[np.generic]:
    """Of a session's input or output."""
    return _TYPES[value.type]


def _fits(found: Sequence[object] | None, expected: Shape | None) -> bool:
    if found is None or expected is None or len(found) != len(expected):
        return False
    # A size that the graph leaves open is a text or None there.
    pairs = zip(found, expected, strict=True)
    return all(size == wanted if isinstance(size, int) else True for size, wanted in pairs if wanted is not None)
