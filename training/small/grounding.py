"""What the small model first learns to say: everything it sees, with boxes, and where a named thing is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drivers.sim.scene import CONTAINERS, OBJECTS
from training.data.answers import absent_name, listing, with_box
from training.data.labels import Seen
from training.data.words import made_up_words

LISTING = 0.6  # share of the questions that ask for everything; the rest name one thing
ABSENT = 0.2  # share of the named things that are not there
ASK_ALL = ("What is on the table?", "Name everything with its box.", "Describe the picture.")
ASK_ONE = ("Where is the {t}?", "Find the {t}.", "Box of the {t}?")


@dataclass(frozen=True)
class Talk:
    """One question about an image and its answer, as plain text."""

    prompt: str
    answer: str


def draw_talk(rng: np.random.Generator, seen: tuple[Seen, ...]) -> Talk:
    """A question that grounds words in the image, as Qwen2.5-VL's own pretraining has them (captions with boxes,
    referring expressions); half of them among words made up of random letters, for instructions have many."""
    if rng.random() < LISTING:
        prompt, answer = str(rng.choice(ASK_ALL)), f"I see {listing(seen)}."
    else:
        if rng.random() < ABSENT:
            name = absent_name(rng, seen, CONTAINERS if rng.random() < 0.3 else OBJECTS)
            answer = f"There is no {name} here."
        else:
            target = seen[int(rng.integers(len(seen)))]
            name, answer = target.name, f"The {with_box(target)}."
        prompt = str(rng.choice(ASK_ONE)).format(t=name)
        if rng.random() < 0.5:
            prompt = f"{made_up_words(rng)} the {name} {made_up_words(rng)}"
    return Talk(prompt.strip() + "\n", answer)
