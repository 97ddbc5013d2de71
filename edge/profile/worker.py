"""The process that is measured: a cold start, then decisions on one image. `edge.profile.run` starts it.

``python -m edge.profile.worker FOLDER``: reads ``job.json`` and ``image.npy`` there, writes ``result.json``. Nothing is
imported before the clock was read, so that what importing costs is seen.
"""

import time

_BEGAN_NS = time.monotonic_ns()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402


def measure(job: dict[str, Any], folder: Path, began_ns: int) -> dict[str, Any]:
    """The figures of a job: see `edge.profile.run.Job`. Raises UserError where the bundle cannot be used."""
    import numpy as np

    from edge.decode import compile_grammars, decide
    from edge.energy import EnergyMeter
    from edge.engine.bundle import load_bundle
    from edge.engine.onnx import OnnxEngine
    from edge.memory_speed import peak_bytes
    from edge.profile.floor import stage_bytes, step_bytes
    from edge.trace import Recorded, Tracer
    from edge.trace_export import trace_events

    marks_ns = [("interpreter", job["spawned_ns"], began_ns), ("import", began_ns, time.monotonic_ns())]

    def mark(name: str) -> None:
        marks_ns.append((name, marks_ns[-1][2], time.monotonic_ns()))

    bundle = load_bundle(Path(job["bundle"]))
    mark("bundle")
    engine = OnnxEngine(bundle)
    mark("graphs")
    compile_grammars(bundle)
    mark("grammars")
    rgb = np.load(folder / "image.npy")
    tracer = Tracer()

    def once() -> tuple[Any, dict[str, float]]:
        before = tracer.written
        decision = decide(engine, rgb, job["task"], job["instruction"], tracer=tracer)
        return decision, _stages_ms(tracer.spans(before))

    marks_ns.append(("first decision", time.monotonic_ns(), 0))
    _, first_ms = once()
    marks_ns[-1] = ("first decision", marks_ns[-1][1], time.monotonic_ns())
    for name, start_ns, stop_ns in marks_ns:
        tracer.record(name, start_ns * 1e-9, stop_ns * 1e-9, "cold start")

    meter = EnergyMeter()
    meter.start()
    runs = [once() for _ in range(job["runs"])]
    energy = meter.stop()
    decision = runs[-1][0]
    encode = bundle.tokenizer.encode
    thinking = decision.text.partition("</think>")[0]
    passes = int(np.median([found.n_passes for found, _ in runs]))
    prefill: Recorded = [span for span in tracer.spans() if span.name == "prefill"][-1]
    return {
        "cold_start_ms": {name: (stop_ns - start_ns) * 1e-6 for name, start_ns, stop_ns in marks_ns},
        "first_decision_ms": first_ms,
        "runs_ms": {name: [stages[name] for _, stages in runs] for name in runs[0][1]},
        "found": decision.answer.output is not None,
        "tokens": {
            "prompt": decision.n_prompt_tokens,
            "image": bundle.n_image_tokens,
            "prefilled": int(prefill.attributes["from_image"]),
            "answer": float(np.median([found.n_tokens for found, _ in runs])),
            "forced": float(np.median([found.n_forced_tokens for found, _ in runs])),
            "thinking": len(encode(thinking, add_special_tokens=False).ids),
            "passes": passes,
        },
        "bundle": {
            "path": job["bundle"],
            "quantization": bundle.quantization,
            "width_px": bundle.width_px,
            "height_px": bundle.height_px,
            "side_px": bundle.patch_px * bundle.merge,
            "checkpoint": bundle.manifest.get("source", {}).get("sha256", ""),
        },
        "step_bytes": step_bytes(bundle),
        "stage_bytes": stage_bytes(bundle, passes),
        "peak_bytes": peak_bytes(),
        "energy": {"missing": meter.missing}
        if energy is None
        else {"joules_per_decision": energy.joules / job["runs"], "source": energy.source},
        "events": trace_events(tracer.spans(), "decisions") if job["trace"] else [],
        "dropped": tracer.dropped,
    }


def _stages_ms(spans: list[Any]) -> dict[str, float]:
    """Milliseconds of each stage of the one decision among ``spans``, of what is in none, and of all."""
    whole = next(span for span in spans if span.name == "decision")
    stages = {span.name: span.duration_s * 1e3 for span in spans if span.parent == whole.number}
    all_ms = whole.duration_s * 1e3
    return {**stages, "rest": all_ms - sum(stages.values()), "decision": all_ms}


def main() -> int:
    """0; 2 after one line on stderr where the user can mend what stopped it."""
    from drivers.errors import UserError

    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    try:
        result = measure(job, folder, _BEGAN_NS)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    (folder / "result.json").write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
