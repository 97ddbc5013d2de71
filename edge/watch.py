"""Whoever only watches a robot at work: what they are told, and that none of them can disturb it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drivers.protocols import Frame
from edge.contract import Task
from edge.decode import Decision, Event

if TYPE_CHECKING:
    from edge.geometry import Grasp
    from edge.loop import Order, Outcome


class Watcher:
    """Subscribes to a run; subclasses override what they want to be told of.

    Each method returns soon: the run waits for it. `frame` may come from another thread than the others.
    """

    def frame(self, frame: Frame) -> None:
        """An image was read, for whatever purpose."""

    def ordered(self, order: Order) -> None:
        """An order begins."""

    def said(self, text: str) -> None:
        """In a few words, what is going on."""

    def asked(self, task: Task, frame: Frame) -> None:
        """A decision begins, on this frame."""

    def event(self, event: Event) -> None:
        """Of the answer that is being written."""

    def decided(self, task: Task, decision: Decision) -> None:
        """The decision, whole."""

    def planned(self, grasp: Grasp, waypoints_m: NDArray[np.float64] | None) -> None:
        """Where the jaws will close, and the way from there, (m, 3), base frame; the motion begins."""

    def ended(self, outcome: Outcome) -> None:
        """How the order went."""


class Watchers(Watcher):
    """Several watchers as one. One that fails is told nothing more; ``complain`` gets a line that says why."""

    def __init__(self, watchers: Iterable[Watcher], complain: Callable[[str], None]) -> None:
        self._watchers, self.complain = list(watchers), complain

    def add(self, watcher: Watcher) -> None:
        """One more, from now on."""
        self._watchers.append(watcher)

    def frame(self, frame: Frame) -> None:
        self._tell(lambda one: one.frame(frame))

    def ordered(self, order: Order) -> None:
        self._tell(lambda one: one.ordered(order))

    def said(self, text: str) -> None:
        self._tell(lambda one: one.said(text))

    def asked(self, task: Task, frame: Frame) -> None:
        self._tell(lambda one: one.asked(task, frame))

    def event(self, event: Event) -> None:
        self._tell(lambda one: one.event(event))

    def decided(self, task: Task, decision: Decision) -> None:
        self._tell(lambda one: one.decided(task, decision))

    def planned(self, grasp: Grasp, waypoints_m: NDArray[np.float64] | None) -> None:
        self._tell(lambda one: one.planned(grasp, waypoints_m))

    def ended(self, outcome: Outcome) -> None:
        self._tell(lambda one: one.ended(outcome))

    def _tell(self, told: Callable[[Watcher], None]) -> None:
        for one in self._watchers.copy():
            try:
                told(one)
            except Exception as error:  # whatever a viewer does wrong is not the robot's trouble
                if one in self._watchers:  # two threads may find out at once
                    self._watchers.remove(one)
                self.complain(f"{type(one).__name__}: {error or type(error).__name__}; it is told nothing more")
