"""Several answers to one question, and the one that the others agree with most."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError
from edge.agreement import medoid
from edge.contract import Task
from edge.decode.decision import MAX_THINK_TOKENS, MAX_TOKENS, Decision, ask
from edge.decode.events import Event
from edge.decode.sampling import Sampling
from edge.engine.protocol import Engine
from edge.trace import OFF, Tracer


@dataclass(frozen=True)
class Consistent:
    """The answer chosen among several.

    Attributes:
        decision: the draw with the least mean distance to the others (`edge.agreement.distance`).
        spread: that mean distance, in [0, 1]: 0 where all draws agree, and where there is one.
        draws: all that were made, the greedy one first.
    """

    decision: Decision
    spread: float
    draws: tuple[Decision, ...]


def decide_consistent(
    engine: Engine,
    rgb: NDArray[np.uint8],
    task: Task,
    instruction: str,
    *,
    draws: int,
    max_think_tokens: int = MAX_THINK_TOKENS,
    max_tokens: int = MAX_TOKENS,
    deadline_s: float | None = None,
    draft: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    on_event: Callable[[Event], None] | None = None,
    tracer: Tracer | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Consistent:
    """Answer one question several times and keep the answer that lies nearest to all.

    The image is encoded and the prompt shown once. The first answer is greedy, the others are sampled, with the answer
    before as their draft.

    Args:
        draws: how many answers, from 1.
        deadline_s: as in `decide`, for all draws together: no draw is begun that could take longer than what is left,
            by the longest so far; one that the deadline cuts all the same does not count.
        sampling: of the draws after the first; its seed is the second draw's, each further one has the next. None
            samples as the released server does.
        on_event: told of the first draw alone.

    The other arguments are those of `decide`.

    Raises:
        UserError: as `decide`; `draws` is less than 1.
    """
    if draws < 1:
        raise UserError(f"draws: is {draws}; expected 1 or more")
    tracer = tracer or OFF
    with tracer.span("decision") as span:
        asked = ask(engine, rgb, task, instruction, max_think_tokens, max_tokens, deadline_s, tracer, clock)
        began_s = clock()
        done = [asked.answer(draft, None, on_event)]
        longest_s = clock() - began_s
        sampling = sampling or Sampling()
        for i in range(draws - 1):
            began_s = clock()
            if asked.ends_s is not None and began_s + longest_s > asked.ends_s:
                break
            drawn = asked.answer(done[-1].tokens, replace(sampling, seed=sampling.seed + i), None)
            longest_s = max(longest_s, clock() - began_s)
            if "deadline" not in (drawn.thinking_cut, drawn.points_cut):
                done.append(drawn)
        span.set(draws=len(done))
    chosen, spread = medoid([decision.answer.output for decision in done])
    return Consistent(done[chosen], spread, tuple(done))
