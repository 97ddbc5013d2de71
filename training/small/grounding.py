"""What the small model first learns to say: everything it sees, with boxes, and where a named thing is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drivers.sim.scene import CONTAINERS, OBJECTS
from training.data.answers import absent_name, box_text, listing, with_box, without_box
from training.data.labels import Seen
from training.data.words import made_up_words

ABSENT = 0.4  # share of the things named among made-up words that are not there
ASK_ALL = ("What is on the table?", "Name everything with its box.", "Describe the picture.")
ASK_SHAPES = ("Which shapes are there?", "Name every shape with its box.", "Describe the shapes.")
ASK_ONE = ("Where is the {t}?", "Find the {t}.", "Box of the {t}?")


@dataclass(frozen=True)
class Talk:
    """One question about an image and its answer, as plain text."""

    prompt: str
    answer: str


def draw_talk(rng: np.random.Generator, seen: tuple[Seen, ...]) -> Talk:
    """A question that grounds words in the image, as Qwen2.5-VL's own pretraining has them.

    One in four asks for everything (a caption with boxes), one in four for one thing (a referring expression), and half
    name one or two things among made-up words, as instructions do, and want everything first, with a star on each word
    that was named, and then those things again. Only there may a named thing be absent.
    """
    kind = rng.random()
    if kind < 0.25:
        return Talk(f"{rng.choice(ASK_ALL)}\n", f"I see {listing(seen)}.")
    if kind < 0.5:
        target = seen[int(rng.integers(len(seen)))]
        return Talk(str(rng.choice(ASK_ONE)).format(t=target.name) + "\n", f"The {with_box(target)}.")
    names, answers = zip(*(_named(rng, seen) for _ in range(int(rng.integers(1, 3)))), strict=True)
    words = made_up_words(rng)
    for name in names:
        words += f" the {name} {made_up_words(rng, most=2)}"
    answer = " ".join((f"I see {listing(seen, names)}.", *answers))
    return Talk(f"{words.strip()} {made_up_words(rng, most=12)}".strip() + "\n", answer)


def draw_talk_of_shapes(rng: np.random.Generator, seen: tuple[Seen, ...]) -> Talk:
    """The same of an image whose colours are not those of its labels: shapes with boxes."""
    items = [f"{s.shape} {box_text(s.box)}" for s in sorted(seen, key=lambda s: s.box[0])]
    return Talk(f"{rng.choice(ASK_SHAPES)}\n", f"I see {'; '.join(items)}.")


def _named(rng: np.random.Generator, seen: tuple[Seen, ...]) -> tuple[str, str]:
    """The name of a thing, and where it is, or that it is not there."""
    if rng.random() < ABSENT:
        name = absent_name(rng, seen, CONTAINERS if rng.random() < 0.3 else OBJECTS)
        return name, f"The {without_box(name)}."
    target = seen[int(rng.integers(len(seen)))]
    return target.name, f"The {with_box(target)}."
