"""An engine that computes as ever and then says what it is told: a random model writes nothing a robot would."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge.engine.bundle import Bundle
from edge.engine.protocol import Engine, Floats

_ABOVE_ALL = 1e4


class Scripted:
    """`engine`, with the logit of the next token of a script put above all others, as long as the script is followed.

    All work is done by `engine`, and every pass costs what it costs; only which token is the likeliest is decided here.
    """

    def __init__(self, engine: Engine, script: Sequence[int]) -> None:
        self._engine = engine
        self.script = list(script)
        self._prompt = 0
        self._written: list[int] = []
        self._number = {token: i for i, token in enumerate(engine.bundle.number_tokens)}

    @property
    def bundle(self) -> Bundle:
        return self._engine.bundle

    @property
    def length(self) -> int:
        return self._engine.length

    @property
    def room(self) -> int:
        return self._engine.room

    def encode_image(self, patches: Floats) -> Floats:
        return self._engine.encode_image(patches)

    def prefill(self, ids: Sequence[int], image_embeds: Floats) -> None:
        self._engine.prefill(ids, image_embeds)
        # Tokens of the answer that are sure from the start come with the prompt.
        begun = next(n for n in range(len(self.script), -1, -1) if list(ids[len(ids) - n :]) == self.script[:n])
        self._prompt, self._written = len(ids) - begun, self.script[:begun]

    def extend(self, tokens: Sequence[int]) -> None:
        self._engine.extend(tokens)
        self._written += tokens

    def truncate(self, length: int) -> None:
        self._engine.truncate(length)
        del self._written[length - self._prompt :]

    def logits(self, last: int = 1) -> Floats:
        return self._tell(self._engine.logits(last), None)

    def number_logits(self, last: int = 1) -> Floats:
        return self._tell(self._engine.number_logits(last), self._number)

    def _tell(self, logits: Floats, columns: dict[int, int] | None) -> Floats:
        pairs = zip(self._written, self.script, strict=False)
        followed = next((i for i, (token, told) in enumerate(pairs) if token != told), len(self._written))
        first = len(self._written) - len(logits) + 1
        for row, place in zip(logits, range(first, first + len(logits)), strict=True):
            if place <= followed and place < len(self.script):
                column = self.script[place] if columns is None else columns.get(self.script[place])
                if column is not None:
                    row[column] = np.float32(_ABOVE_ALL)
        return logits
