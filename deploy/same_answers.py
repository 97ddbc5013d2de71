"""Are the answers of two machines to the same questions the same?

``python deploy/same_answers.py ONE OTHER``: two folders of what ``vlar1 ask --json`` printed, one file a question, and
beside them ``patches.txt`` with a hash of every frame's patches. A number may differ by 0.01, the last digit that the
model writes: where two are as good, kernels that round otherwise choose the other. Words and all else may not. The exit
code is 0 where no answer differs by more.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Literal

DIGIT = 0.01
SAME = ("tokens", "thinking_cut", "points_cut")
"""What two answers must have in common beside their text; the output is the text's."""
_NUMBER = re.compile(r"\d+\.\d+")


def read_answers(folder: Path) -> dict[str, dict[str, Any]]:
    """The answers in a folder by the names of their questions."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def agreement(one: dict[str, Any], other: dict[str, Any]) -> Literal["same", "a digit", "other"]:
    """Whether two answers have every token in common, all but the last digit of some numbers, or less."""
    if any(one[key] != other[key] for key in SAME):
        return "other"
    texts = [answer["text"] for answer in (one, other)]
    if texts[0] == texts[1]:
        return "same"
    words = [_NUMBER.split(text) for text in texts]
    pairs = zip(*(map(float, _NUMBER.findall(text)) for text in texts), strict=False)
    return "a digit" if words[0] == words[1] and all(abs(a - b) < 1.5 * DIGIT for a, b in pairs) else "other"


def compare(one: Path, other: Path) -> bool:
    """Print how far the answers in two folders agree; whether enough. Raises SystemExit where the questions differ."""
    ours, theirs = read_answers(one), read_answers(other)
    if not ours or ours.keys() != theirs.keys():
        raise SystemExit(f"same_answers: {one} has {len(ours)} answers, {other} others or none; ask again")
    found = {name: agreement(answer, theirs[name]) for name, answer in ours.items()}
    for name, how in found.items():
        if how != "same":
            print(f"{name}: {how}\n  {one.name}: {ours[name]['text']}\n  {other.name}: {theirs[name]['text']}")
    count = {how: list(found.values()).count(how) for how in ("same", "a digit", "other")}
    print(f"of {len(found)} answers {count['same']} are the same to the last token, reasoning and all")
    print(f"{count['a digit']} differ by {DIGIT} in a number, {count['other']} by more")
    apart = [abs(answer["confidence"] - theirs[name]["confidence"]) for name, answer in ours.items()]
    print(f"confidences differ by {max(apart):.1e} at most")
    patches = [(folder / "patches.txt").read_text().splitlines() for folder in (one, other)]
    n_same = sum(a == b for a, b in zip(*patches, strict=True))
    print(f"{n_same} of {len(patches[0])} frames give the same patches to the bit")
    return not count["other"]


if __name__ == "__main__":
    sys.exit(not compare(Path(sys.argv[1]), Path(sys.argv[2])))
