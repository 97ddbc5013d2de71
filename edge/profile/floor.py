"""The floor under a decision: the bytes of weights that each stage has to read, whatever computes it."""

from __future__ import annotations

from edge.engine.bundle import HEAD, LANGUAGE, Bundle


def step_bytes(bundle: Bundle) -> int:
    """Weights that a pass of the language model reads: its layers' and its head's, once.

    The whole head, as the reasoning needs it; passes inside numbers read less of it.
    """
    return _bytes(bundle, LANGUAGE) + _bytes(bundle, HEAD)


def stage_bytes(bundle: Bundle, passes: int) -> dict[str, int]:
    """Weights that the stages of a decision read, each once a pass, where decoding takes so many passes."""
    step = step_bytes(bundle)
    return {"vision": _bytes(bundle, bundle.images[0].vision), "prefill": step, "decode": passes * step}


def _bytes(bundle: Bundle, graph: str) -> int:
    """Of a graph and of the weights beside it; image sizes share theirs."""
    stem = graph.removesuffix(".onnx").partition("-")[0]
    files = bundle.manifest["files"]
    return sum(int(files[name]["bytes"]) for name in (graph, f"{stem}.data", f"{graph}.data") if name in files)
