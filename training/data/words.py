"""How things are asked for: the wordings of training, and others that only the paraphrase set uses."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np

from drivers.sim.scene import PICK_WORDS, PLACE_WORDS

PICK: tuple[str, ...] = (
    *PICK_WORDS,
    "get the {t}",
    "pick the {t} up",
    "i need the {t}",
    "reach for the {t}",
    "close the gripper on the {t}",
    "the {t} should be lifted",
)
PLACE: tuple[str, ...] = (
    *PLACE_WORDS,
    "set the {t} down in the {c}",
    "take the {t} and put it in the {c}",
    "the {t} goes in the {c}",
    "i want the {t} in the {c}",
    "lay the {t} in the {c}",
    "into the {c} with the {t}",
    "fill the {c} with the {t}",
)
OPENINGS = ("", "", "", "please ", "now ", "robot, ", "next, ", "can you ")

NEW_PICK: tuple[str, ...] = (
    "fetch the {t}",
    "hand me the {t}",
    "could you collect the {t} for me?",
    "seize the {t}",
    "let us have the {t}",
    "raise the {t} off the table",
    "i would like to hold the {t}",
    "bring the {t} up here",
)
NEW_PLACE: tuple[str, ...] = (
    "the {t} belongs inside the {c}",
    "carry the {t} over to the {c}",
    "the {c} is where the {t} should end up",
    "stow the {t} in the {c}",
    "transfer the {t} to the {c}",
    "tidy the {t} away into the {c}",
    "would you drop off the {t} at the {c}?",
    "deliver the {t} to the {c}",
)

# Of things that no scene has. Who is asked for one must say so; and a model that only ever read eight colours and six
# shapes learns which go together, and names a thing of a pair that is new to it by another pair.
NO_COLOURS: tuple[str, ...] = (
    *("pink", "grey", "brown", "golden", "silver", "beige", "violet", "turquoise"),
    *("striped", "wooden", "maroon", "navy", "teal", "lime"),
)
NO_SHAPES: tuple[str, ...] = (
    *("screwdriver", "spoon", "mug", "pen", "bolt", "sponge", "key", "bottle", "brush", "battery", "fork", "glove"),
    *("lamp", "coin", "clip", "shoe", "apple", "banana", "phone", "toothbrush", "hammer", "ring", "stone", "pencil"),
    *("towel", "wrench", "ruler", "plug", "knife", "cable", "card", "cork", "candle", "button", "magnet", "wheel"),
)


def unknown_name(rng: np.random.Generator, colours: Sequence[str], shapes: Sequence[str]) -> str:
    """A name in which the colour, the shape or both are words for nothing on the table."""
    which = rng.random()
    colour = rng.choice(NO_COLOURS if which < 0.5 else colours)
    shape = rng.choice(NO_SHAPES if not 0.2 < which < 0.5 else shapes)
    return f"{colour} {shape}"


def ask(rng: np.random.Generator, target: str, container: str | None, new: bool = False) -> str:
    """An instruction about ``target``, and where it goes if that is asked.

    Args:
        new: in the wordings that training never uses.
    """
    if container is None:
        words = str(rng.choice(NEW_PICK if new else PICK))
    else:
        words = str(rng.choice(NEW_PLACE if new else PLACE))
    opening = "" if new or words.startswith(("the ", "i ", "into ")) else str(rng.choice(OPENINGS))
    return opening + words.format(t=target, c=container)


def made_up_words(rng: np.random.Generator, most: int = 3) -> str:
    """Up to ``most`` words of random letters: what a model learns from must not hang on the words around a name."""
    letters = list(string.ascii_lowercase)
    return " ".join("".join(rng.choice(letters, rng.integers(2, 8))) for _ in range(rng.integers(0, most + 1)))
