"""Decoding: a loaded model to one answer that always parses, streamed, in time, and how sure the model is of it."""

from edge.decode.budget import Cut
from edge.decode.consistent import Consistent, decide_consistent
from edge.decode.decision import Decision, decide
from edge.decode.events import Event, OutputEvent, TextEvent, WaypointEvent
from edge.decode.sampling import Sampling
from edge.decode.writer import AnswerWriter, Vocabulary, compile_grammars

__all__ = [
    "AnswerWriter",
    "Consistent",
    "Cut",
    "Decision",
    "Event",
    "OutputEvent",
    "Sampling",
    "TextEvent",
    "Vocabulary",
    "WaypointEvent",
    "compile_grammars",
    "decide",
    "decide_consistent",
]
