"""Where the time went: nested spans of decisions, servo cycles and frames on one clock, and the figures of each stage.

All times are ``time.monotonic``'s, as those of frames and of the servo loop are. A span costs a microsecond or two
(``python -m benchmarks.tracing``) and takes its place in a ring of fixed size: when that is full, the oldest spans go.
What was counted of them stays: counts, sums and largest durations are of all passes since the start, percentiles of the
latest `WINDOW` of each name.
"""

from __future__ import annotations

import itertools
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

STAGES = ("capture", "preprocess", "vision", "prefill", "decode", "parse", "track", "lift", "plan", "actuate")
AMOUNTS = ("tokens", "bytes")
"""Attributes that are added up over the passes of a name."""
CAPACITY = 1 << 16
WINDOW = 1 << 14
MAX_ATTRIBUTES = 4

Summary = dict[str, dict[str, float]]

_RECORD = np.dtype(
    [
        ("began_ns", "<i8"),
        ("ended_ns", "<i8"),
        ("number", "<i8"),
        ("parent", "<i8"),
        ("kind", "<u2"),
        ("track", "<u2"),
        ("n_attributes", "<u2"),
        ("keys", "<u2", (MAX_ATTRIBUTES,)),
        ("values", "<f8", (MAX_ATTRIBUTES,)),
    ]
)
_SIZE = _RECORD.itemsize
# A record with so many attributes, packed in one go; what it had of others before is left there.
_PACKS = [struct.Struct(f"<qqqqHHH{n}H{2 * (MAX_ATTRIBUTES - n)}x{n}d").pack_into for n in range(MAX_ATTRIBUTES + 1)]
_FOLD = 1 << 12  # records that are taken into the figures at once, which costs less than one by one
_FOLD_BYTES = _FOLD * _SIZE
_monotonic_ns, _pack_bare = time.monotonic_ns, _PACKS[0]


@dataclass(frozen=True)
class Recorded:
    """One span as it was recorded.

    Attributes:
        began_ns, ended_ns: ``time.monotonic_ns()``.
        number: of the span, from 1; ``parent``: of the span that it lies in, or 0.
        track: the thread it ran in, "name/identity", or where it was timed.
        elsewhere: it was timed elsewhere: it has no parent, and others of its track may overlap it.
    """

    name: str
    began_ns: int
    ended_ns: int
    number: int
    parent: int
    track: str
    elsewhere: bool
    attributes: Mapping[str, float]

    @property
    def duration_s(self) -> float:
        return (self.ended_ns - self.began_ns) * 1e-9


@dataclass(frozen=True, eq=False)
class Figures:
    """What is known of all spans of one name.

    Attributes:
        stage: a part of the way, in `Tracer.summary`; the others lie around such or within.
        count, total_s, max_s: of all passes.
        latest_s: (n,) durations of the latest, oldest first, at most `WINDOW`.
        amounts: sums of the attributes in `AMOUNTS`.
    """

    name: str
    stage: bool
    count: int
    total_s: float
    max_s: float
    latest_s: NDArray[np.float64]
    amounts: Mapping[str, float]


class Span:
    """A context manager whose body is timed; of `Tracer.stage` and `Tracer.span`. A body that raises counts as well."""

    __slots__ = ("_attributes", "_began_ns", "_kind", "_number", "_parent", "_thread", "_tracer")

    def __init__(self, tracer: Tracer, kind: int, attributes: dict[str, float]) -> None:
        self._tracer, self._kind, self._attributes = tracer, kind, attributes

    def set(self, **attributes: float) -> None:
        """Add attributes that were not known at the beginning. Raises ValueError above `MAX_ATTRIBUTES`."""
        self._attributes.update(attributes)
        if len(self._attributes) > MAX_ATTRIBUTES:
            _refuse(self._attributes)

    def within(self, name: str, began_ns: int, ended_ns: int, **attributes: float) -> None:
        """Record a span within this one, which runs: timed by hand, where a span of its own would disturb.

        Args:
            began_ns, ended_ns: ``time.monotonic_ns()``, within this span's time and not overlapping others of it.
        """
        tracer, at = self._tracer, (self._number, self._thread.track)
        tracer._record(tracer._kind(name, False), began_ns, ended_ns, *at, attributes)

    def __enter__(self) -> Span:
        tracer = self._tracer
        self._thread = thread = tracer._local.thread
        self._parent = thread.inside
        self._number = thread.inside = next(tracer._numbers)
        self._began_ns = _monotonic_ns()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        ended_ns = _monotonic_ns()
        thread, tracer, attributes = self._thread, self._tracer, self._attributes
        thread.inside = self._parent
        with tracer._lock:
            at = tracer._next
            if attributes:
                pack, keys = tracer._packs.get(tuple(attributes)) or tracer._new_pack(attributes)
                pack(
                    tracer._buffer,
                    at,
                    self._began_ns,
                    ended_ns,
                    self._number,
                    self._parent,
                    self._kind,
                    thread.track,
                    *keys,
                    *attributes.values(),
                )
            else:
                _pack_bare(
                    tracer._buffer,
                    at,
                    self._began_ns,
                    ended_ns,
                    self._number,
                    self._parent,
                    self._kind,
                    thread.track,
                    0,
                )
            tracer._next = at = at + _SIZE
            if not at % _FOLD_BYTES:
                tracer._turn()


class _Nothing(Span):
    """The span of a tracer that is off."""

    __slots__ = ()

    def __init__(self) -> None: ...

    def set(self, **attributes: float) -> None: ...

    def within(self, name: str, began_ns: int, ended_ns: int, **attributes: float) -> None: ...

    def __enter__(self) -> Span:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None: ...


_NOTHING = _Nothing()


class _Kept:
    """The running figures of one kind of span: its name, and whether it is a stage."""

    __slots__ = ("amounts", "count", "latest_ns", "max_ns", "name", "stage", "total_ns")

    def __init__(self, name: str, stage: bool) -> None:
        self.name, self.stage = name, stage
        self.count = self.total_ns = self.max_ns = 0
        self.latest_ns = np.zeros(WINDOW, np.int64)  # memory that the system gives page by page, as it is written
        self.amounts: dict[str, float] = {}

    def take(self, durations_ns: NDArray[np.int64]) -> None:
        """Count passes, the oldest first; no more than `WINDOW` at once."""
        n = len(durations_ns)
        self.latest_ns[(self.count + np.arange(n)) % WINDOW] = durations_ns
        self.count += n
        self.total_ns += int(durations_ns.sum())
        self.max_ns = max(self.max_ns, int(durations_ns.max()))

    def figures(self) -> Figures:
        latest_ns = self.latest_ns[: self.count].copy()
        if self.count > WINDOW:
            latest_ns = np.roll(latest_ns, -(self.count % WINDOW))
        return Figures(
            name=self.name,
            stage=self.stage,
            count=self.count,
            total_s=self.total_ns * 1e-9,
            max_s=self.max_ns * 1e-9,
            latest_s=np.multiply(latest_ns, 1e-9, dtype=np.float64),
            amounts=dict(self.amounts),
        )


class _Thread:
    """One thread's track, and the span that it is inside of."""

    __slots__ = ("inside", "track")

    def __init__(self, track: int) -> None:
        self.track, self.inside = track, 0


class _Local(threading.local):
    """The `_Thread` of whichever thread asks."""

    def __init__(self, tracer: Tracer) -> None:
        current = threading.current_thread()
        # Identities come back once their thread is gone: there are never more tracks than there were threads at once.
        self.thread = _Thread(tracer._track(current.ident or 0, f"{current.name}/{current.ident}"))


class Tracer:
    """Takes spans from any thread; spans of one thread nest. Attributes are numbers.

    Args:
        on: whether anything is recorded at all.
        capacity: spans that are kept; a multiple of 4096.
    """

    def __init__(self, on: bool = True, capacity: int = CAPACITY) -> None:
        if capacity < _FOLD or capacity % _FOLD:
            raise ValueError(f"capacity {capacity}: expected a multiple of {_FOLD}")
        self._on, self._end = on, capacity * _SIZE
        self._buffer = bytearray(self._end if on else 0)
        self._next = 0  # where the next record goes
        self._laps = self._folded = 0  # times the ring was filled; records that are in the figures
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._kinds: list[_Kept] = []
        self._stages: dict[str, int] = {}
        self._spans: dict[str, int] = {}
        self._keys: dict[str, int] = {}
        # Names of attributes that come together -> how such a record is packed; how many they are and their keys.
        self._packs: dict[tuple[str, ...], tuple[Callable[..., None], tuple[int, ...]]] = {}
        self._tracks: list[tuple[str, bool]] = []  # its name, and whether it is elsewhere
        self._track_ids: dict[int | str, int] = {}
        self._local = _Local(self)

    def stage(self, name: str, **attributes: float) -> Span:
        """Times the body as one pass of stage ``name``: a part of the way from frame to setpoints.

        Raises ValueError above `MAX_ATTRIBUTES`.
        """
        if not self._on:
            return _NOTHING
        if attributes and len(attributes) > MAX_ATTRIBUTES:
            _refuse(attributes)
        try:
            return Span(self, self._stages[name], attributes)
        except KeyError:
            return Span(self, self._kind(name, True), attributes)

    def span(self, name: str, **attributes: float) -> Span:
        """Times the body as something around stages, or within one: `summary` leaves it out. Raises as `stage`."""
        if not self._on:
            return _NOTHING
        if attributes and len(attributes) > MAX_ATTRIBUTES:
            _refuse(attributes)
        try:
            return Span(self, self._spans[name], attributes)
        except KeyError:
            return Span(self, self._kind(name, False), attributes)

    def add(
        self, name: str, duration_s: float, began_s: float | None = None, track: str = "", **attributes: float
    ) -> None:
        """Records one pass of stage ``name``, timed elsewhere.

        Args:
            duration_s: how long it took.
            began_s: when, ``time.monotonic()``; left out, it ended just now.
            track: where it was timed; left out, the stage's name.
        """
        if self._on:
            began_s = time.monotonic() - duration_s if began_s is None else began_s
            self._elsewhere(self._kind(name, True), began_s, duration_s, track or name, attributes)

    def record(self, name: str, began_s: float, ended_s: float, track: str, **attributes: float) -> None:
        """Records a span timed elsewhere that is no stage, such as a frame's age: ``time.monotonic()`` seconds."""
        if self._on:
            self._elsewhere(self._kind(name, False), began_s, ended_s - began_s, track, attributes)

    # What was recorded

    @property
    def written(self) -> int:
        """Spans recorded so far, those no longer kept included."""
        return (self._laps * self._end + self._next) // _SIZE

    @property
    def dropped(self) -> int:
        """Spans no longer kept."""
        return max(0, self.written - self._end // _SIZE)

    def spans(self, since: int = 0) -> list[Recorded]:
        """The spans still kept, from the ``since``-th recorded one on, in the order they were recorded."""
        with self._lock:
            rows = self._rows(max(since, self.dropped))
            kinds, keys, tracks = list(self._kinds), list(self._keys), list(self._tracks)
        found = []
        for row in rows:
            n = int(row["n_attributes"])
            attributes = zip(row["keys"][:n].tolist(), row["values"][:n].tolist(), strict=True)
            track, elsewhere = tracks[row["track"]]
            found.append(
                Recorded(
                    name=kinds[row["kind"]].name,
                    began_ns=int(row["began_ns"]),
                    ended_ns=int(row["ended_ns"]),
                    number=int(row["number"]),
                    parent=int(row["parent"]),
                    track=track,
                    elsewhere=elsewhere,
                    attributes={keys[key]: value for key, value in attributes},
                )
            )
        return found

    def figures(self) -> list[Figures]:
        """Of every name that was passed: the stages in the order of ``STAGES``, then other stages, then other spans."""
        with self._lock:
            self._fold()
            found = [kept.figures() for kept in self._kinds if kept.count]
        order = {name: i for i, name in enumerate(STAGES)}
        return sorted(found, key=lambda figures: (not figures.stage, order.get(figures.name, len(order))))

    def durations_s(self, name: str) -> list[float]:
        """The latest durations of stage ``name``, oldest first, at most `WINDOW`; none for a stage that never ran."""
        return next((f.latest_s.tolist() for f in self.figures() if f.stage and f.name == name), [])

    def summary(self) -> Summary:
        """``{stage: {"count", "p50_ms", "p90_ms", "max_ms"}}`` for the stages that ran, in the order of ``STAGES``."""
        result: Summary = {}
        for figures in self.figures():
            if figures.stage:
                p50_ms, p90_ms = np.percentile(figures.latest_s * 1e3, (50, 90))
                result[figures.name] = {
                    "count": figures.count,
                    "p50_ms": float(p50_ms),
                    "p90_ms": float(p90_ms),
                    "max_ms": figures.max_s * 1e3,
                }
        return result

    # Inside

    def _kind(self, name: str, stage: bool) -> int:
        kinds = self._stages if stage else self._spans
        if name not in kinds:
            with self._lock:
                if name not in kinds:
                    self._kinds.append(_Kept(name, stage))
                    kinds[name] = len(self._kinds) - 1
        return kinds[name]

    def _track(self, key: int | str, name: str) -> int:
        with self._lock:
            if key not in self._track_ids:
                self._tracks.append((name, isinstance(key, str)))
                self._track_ids[key] = len(self._tracks) - 1
            track = self._track_ids[key]
            self._tracks[track] = (name, isinstance(key, str))
            return track

    def _elsewhere(self, kind: int, began_s: float, took_s: float, track: str, attributes: dict[str, float]) -> None:
        track_id = self._track_ids[track] if track in self._track_ids else self._track(track, track)
        began_ns = round(began_s * 1e9)
        self._record(kind, began_ns, began_ns + round(took_s * 1e9), 0, track_id, attributes)

    def _record(
        self, kind: int, began_ns: int, ended_ns: int, parent: int, track: int, attributes: dict[str, float]
    ) -> None:
        if len(attributes) > MAX_ATTRIBUTES:
            _refuse(attributes)
        number = next(self._numbers)
        with self._lock:
            pack, keys = self._packs.get(tuple(attributes)) or self._new_pack(attributes)
            values = (*keys, *attributes.values())
            pack(self._buffer, self._next, began_ns, ended_ns, number, parent, kind, track, *values)
            self._next += _SIZE
            if not self._next % _FOLD_BYTES:
                self._turn()

    def _new_pack(self, names: Iterable[str]) -> tuple[Callable[..., None], tuple[int, ...]]:
        """The entry of `_packs` for attributes of these names. The lock is held."""
        names = tuple(names)
        keys = [self._keys.setdefault(name, len(self._keys)) for name in names]
        self._packs[names] = _PACKS[len(names)], (len(names), *keys)
        return self._packs[names]

    def _turn(self) -> None:
        """Another `_FOLD` records are there. The lock is held."""
        if self._next == self._end:
            self._next, self._laps = 0, self._laps + 1
        self._fold()

    def _rows(self, first: int) -> NDArray[np.void]:
        """A copy of the records from number ``first`` on, none of which is overwritten yet. The lock is held."""
        if not self._on:
            return np.zeros(0, _RECORD)
        rows: NDArray[np.void] = np.frombuffer(self._buffer, _RECORD)
        start, n = first % len(rows), max(0, self.written - first)
        n_to_end = min(n, len(rows) - start)
        return np.concatenate([rows[start : start + n_to_end], rows[: n - n_to_end]])

    def _fold(self) -> None:
        """Take what was recorded since the last time into the figures. The lock is held."""
        rows = self._rows(self._folded)
        self._folded += len(rows)
        durations_ns = rows["ended_ns"] - rows["began_ns"]
        used = np.arange(MAX_ATTRIBUTES) < rows["n_attributes"][:, None]
        for kind in np.unique(rows["kind"]):
            kept, those = self._kinds[kind], rows["kind"] == kind
            kept.take(durations_ns[those])
            for amount in AMOUNTS:
                if amount in self._keys:
                    found = used[those] & (rows["keys"][those] == self._keys[amount])
                    if found.any():
                        kept.amounts[amount] = kept.amounts.get(amount, 0.0) + float(rows["values"][those][found].sum())


def _refuse(attributes: Mapping[str, float]) -> NoReturn:
    raise ValueError(f"a span has at most {MAX_ATTRIBUTES} attributes, got {', '.join(attributes)}")


OFF = Tracer(on=False)
"""Records nothing."""


def latency_table(summary: Summary, title: str = "Latency") -> Table:
    """A table of ``Tracer.summary()`` to print with rich."""
    table = Table(title=title)
    table.add_column("stage")
    for column in ("count", "p50 ms", "p90 ms", "max ms"):
        table.add_column(column, justify="right")
    for name, row in summary.items():
        table.add_row(name, f"{row['count']:.0f}", *(f"{row[key]:.2f}" for key in ("p50_ms", "p90_ms", "max_ms")))
    return table
