"""The sequence behind an engine: which tokens its cache holds, where they sit, and what of them can be asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from edge.engine.bundle import Bundle, ImageSize
from edge.engine.embedding import open_table
from edge.engine.mrope import mrope_positions, rotary
from edge.engine.protocol import Floats


class SequenceEngine(ABC):
    """An `edge.engine.protocol.Engine` but for the arithmetic, which three hooks do.

    What a prompt has in common with the one before it, up to their images, stays in the cache and is not computed
    again.
    """

    def __init__(self, bundle: Bundle, room: int) -> None:
        """`room`: tokens that the cache holds."""
        self._bundle, self._room = bundle, room
        self._table = open_table(bundle)
        self._ids: list[int] = []
        self._n_kept = self._prompt_length = 0  # of `_ids`: before the image, and in the prompt
        self._shift = 0  # position of a token after the prompt, less its place
        self._first = self._stop = 0  # rows of the latest pass that logits may be asked of

    @abstractmethod
    def _encode(self, size: ImageSize, patches: Floats) -> Floats:
        """(n_patches, patch values) -> (n_image_tokens, hidden)."""

    @abstractmethod
    def _forward(self, start: int, embeds: Floats, cos: Floats, sin: Floats) -> None:
        """Compute n tokens after the first `start` of the cache, and keep their last hidden states.

        Args:
            start: tokens before them; whatever the cache holds beyond is overwritten.
            embeds: (n, hidden), n > 0.
            cos, sin: (n, head_dim / 2) of their positions.
        """

    @abstractmethod
    def _head(self, numbers: bool, first: int, stop: int) -> Floats:
        """Logits after rows `first` to `stop` of the latest pass: of `bundle.number_tokens` alone, or of all tokens."""

    @property
    def bundle(self) -> Bundle:
        return self._bundle

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self._ids)

    @property
    def room(self) -> int:
        """Tokens that the cache holds."""
        return self._room

    def encode_image(self, patches: Floats) -> Floats:
        """Image embeddings of one frame: (n_patches, patch values) of `edge.preprocess` -> (n_image_tokens, hidden).

        Raises:
            ValueError: no image size of the bundle has so many patches.
        """
        bundle = self._bundle
        sizes = {int(np.prod(bundle.grid_of(size))) * bundle.merge**2: size for size in bundle.images}
        if len(patches) not in sizes:
            raise ValueError(f"{len(patches)} patches; the bundle's image sizes have {', '.join(map(str, sizes))}")
        return self._encode(sizes[len(patches)], patches)

    def prefill(self, ids: Sequence[int], image_embeds: Floats) -> None:
        """Start a new sequence with a prompt, keeping what it has in common with the last before their images.

        Args:
            ids: the prompt's tokens, the image placeholder once for each row of `image_embeds`.
            image_embeds: (n_image_tokens, hidden) of `encode_image`; no rows for a prompt without an image.

        Raises:
            ValueError: `ids` is empty or longer than the room, or placeholders and embeddings do not match.
        """
        ids = [int(token) for token in ids]
        image_token = self._bundle.image_token
        n_placeholders = ids.count(image_token)
        if not ids or n_placeholders != len(image_embeds):
            raise ValueError(
                f"{len(ids)} tokens with {n_placeholders} image placeholders, {len(image_embeds)} embeddings"
            )
        grids = {rows * cols: (rows, cols) for rows, cols in map(self._bundle.grid_of, self._bundle.images)}
        positions = mrope_positions(ids, image_token, grids.get(n_placeholders, self._bundle.grid))
        self._require_room(len(ids))
        n_text = ids.index(image_token) if n_placeholders else len(ids)
        # The last token is computed anew in any case: its hidden state is asked for.
        start = common_length(self._ids[: self._n_kept], ids[: min(n_text, len(ids) - 1)])
        embeds = self._table.rows(ids[start:])
        embeds[np.array(ids[start:]) == image_token] = image_embeds
        self._ids, self._n_kept, self._prompt_length = ids[:start], start, 0  # holds should the pass fail
        self._first = self._stop = 0
        self._forward(start, embeds, *rotary(positions[:, start:], self._bundle.rope))
        self._ids, self._n_kept, self._prompt_length = ids, n_text, len(ids)
        self._shift = int(positions.max()) + 1 - len(ids)
        self._first, self._stop = len(embeds) - 1, len(embeds)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append text tokens in one pass.

        Raises:
            ValueError: `tokens` is empty, nothing was prefilled, or there is no room.
        """
        if not self._prompt_length or not len(tokens):
            raise ValueError(f"{len(tokens)} tokens to append to {self.length}; prefill comes first")
        self._require_room(self.length + len(tokens))
        places = np.arange(len(tokens)) + (self.length + self._shift)
        tables = rotary(np.broadcast_to(places, (3, len(tokens))), self._bundle.rope)
        self._first = self._stop = 0
        self._forward(self.length, self._table.rows(tokens), *tables)
        self._ids.extend(int(token) for token in tokens)
        self._stop = len(tokens)

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first `length`; `logits` then are those after what remains.

        Raises:
            ValueError: `length` is more than there are, or reaches into the prompt.
        """
        if not self._prompt_length <= length <= self.length:
            raise ValueError(f"truncate to {length} of {self.length} tokens, {self._prompt_length} of them the prompt")
        self._stop = max(self._first, self._stop - (self.length - length))
        del self._ids[length:]

    def logits(self, last: int = 1) -> Floats:
        """(last, vocab): what may follow each of the last `last` tokens in the cache.

        Raises:
            ValueError: `last` is more than what remains of the latest `extend` (of `prefill`: its last token).
        """
        return self._last_rows(False, last)

    def number_logits(self, last: int = 1) -> Floats:
        """(last, len(bundle.number_tokens)): `logits`, of `bundle.number_tokens` alone. Raises as `logits`."""
        return self._last_rows(True, last)

    def _last_rows(self, numbers: bool, last: int) -> Floats:
        left = self._stop - self._first
        if not 1 <= last <= left:
            raise ValueError(f"logits of the last {last} tokens; {left} remain of the latest pass")
        return self._head(numbers, self._stop - last, self._stop)

    def _require_room(self, length: int) -> None:
        if length > self._room:
            raise ValueError(f"{length} tokens, the cache has room for {self._room}")


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    n = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        n += 1
    return n
