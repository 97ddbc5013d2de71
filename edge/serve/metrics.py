"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from collections import Counter

from edge.serve.line import Line
from edge.trace_export import prometheus_text

PATHS = (
    "/health",
    "/generate",
    "/generate_multipart",
    "/v1/decide",
    "/v1/chat/completions",
    "/v1/models",
    "/metrics",
)


class Metrics:
    """Answers by path and status; paths that the server does not have count as one."""

    def __init__(self) -> None:
        self._answers: Counter[tuple[str, int]] = Counter()

    def answered(self, path: str, status: int) -> None:
        """One more answer."""
        self._answers[path if path in PATHS else "other", status] += 1

    def text(self, line: Line) -> str:
        """Prometheus' text format, version 0.0.4: where decisions' time went (`edge.trace_export`), and what came."""
        rows = ["# TYPE vlar1_requests_total counter"]
        rows += [
            f'vlar1_requests_total{{path="{path}",status="{status}"}} {n}'
            for (path, status), n in sorted(self._answers.items())
        ]
        rows += ["# TYPE vlar1_left_total counter", f"vlar1_left_total {line.n_left}"]
        rows += ["# TYPE vlar1_waiting gauge", f"vlar1_waiting {line.n_waiting}"]
        return prometheus_text(line.tracer) + "\n".join(rows) + "\n"
