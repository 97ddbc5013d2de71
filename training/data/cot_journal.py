"""What has been accepted so far, on disk at once: however a run ends, the next one asks only for what is missing."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drivers.errors import UserError
from training.data.cot_question import label_text
from training.data.sharegpt import Item


def keys(items: Sequence[Item]) -> list[str]:
    """A name for each item that stays when the file is reordered or grows: a hash of what is asked and of the label.

    Equal items get different names, by their order.
    """
    seen: Counter[str] = Counter()
    names = []
    for item in items:
        what = json.dumps([item.image, item.task, item.instruction, label_text(item)])
        digest = hashlib.sha256(what.encode()).hexdigest()[:20]
        seen[digest] += 1
        names.append(f"{digest}-{seen[digest]}")
    return names


class Journal:
    """A file of JSON lines, one accepted item each: ``{"key", "reasoning", "cot"}``. Use as a context: it holds a lock.

    Attributes:
        path: ``DIR/train.json`` -> ``DIR/train.journal.jsonl``.
        done: the lines by their key.
    """

    def __init__(self, out: Path) -> None:
        self.path = out.with_suffix(".journal.jsonl")
        self.done: dict[str, dict[str, Any]] = {}
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)  # what fails is not tried again at close
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be written ({error.strerror}); choose another --out") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"{self.path}: another run is writing it; wait for it, or choose another --out") from None
        self._load()

    def _load(self) -> None:
        text = self.path.read_bytes()
        whole = text.rfind(b"\n") + 1
        for line in text[:whole].splitlines():
            try:
                entry = json.loads(line)
                self.done[entry["key"]] = {"reasoning": str(entry["reasoning"]), "cot": dict(entry["cot"])}
            except (ValueError, KeyError, TypeError):
                continue  # a damaged line costs its item another question
        self._file.truncate(whole)  # the end of a line that a full disk or a kill cut short

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, key: str, reasoning: str, cot: dict[str, Any]) -> None:
        """Keep one accepted item; on disk when this returns. Raises UserError where the disk takes no more."""
        entry = {"reasoning": reasoning, "cot": cot}
        line = json.dumps({"key": key, **entry}, ensure_ascii=False) + "\n"
        try:
            rest = line.encode()
            while rest:  # a nearly full disk takes a part first
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            what = f"{self.path}: cannot be written ({error.strerror})"
            raise UserError(f"{what}; {len(self.done)} items are safe in it; free space and run again") from None
        self.done[key] = entry
