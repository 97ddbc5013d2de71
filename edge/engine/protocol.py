"""What decoding asks of a loaded model; every engine is one of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.engine.bundle import Bundle

Floats = NDArray[np.float32]


class Engine(Protocol):
    """A loaded bundle and the key-value cache of one sequence. Not for use from several threads at once.

    A sequence is a prompt (text, then one image, then text; or text alone) and the answer's tokens after it. What is
    returned belongs to the caller until the engine's next call.
    """

    @property
    def bundle(self) -> Bundle: ...

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        ...

    @property
    def room(self) -> int:
        """Tokens that the cache holds at most."""
        ...

    def encode_image(self, patches: Floats) -> Floats:
        """(n_patches, patch values) -> (n_image_tokens, hidden).

        Raises:
            ValueError: no image size of the bundle has so many patches.
        """
        ...

    def prefill(self, ids: Sequence[int], image_embeds: Floats) -> None:
        """Start a new sequence with a prompt.

        Whatever the cached sequence's tokens before the image have in common with `ids` is kept and not computed again.

        Args:
            ids: the prompt's tokens, the image placeholder once for each row of `image_embeds`.
            image_embeds: (n_image_tokens, hidden) of `encode_image`; no rows for a prompt without an image.

        Raises:
            ValueError: `ids` is empty, placeholders and embeddings do not match, or there is no room.
        """
        ...

    def extend(self, tokens: Sequence[int]) -> None:
        """Append text tokens in one pass.

        Raises:
            ValueError: `tokens` is empty, nothing was prefilled, or there is no room.
        """
        ...

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first `length`; `logits` then are those after what remains.

        Raises:
            ValueError: `length` is more than there are, or reaches into the prompt.
        """
        ...

    def logits(self, last: int = 1) -> Floats:
        """(last, vocab): what may follow each of the last `last` tokens in the cache.

        Raises:
            ValueError: `last` is more than what remains of the latest `extend` (of `prefill`: its last token).
        """
        ...

    def number_logits(self, last: int = 1) -> Floats:
        """(last, len(bundle.number_tokens)): `logits`, of `bundle.number_tokens` alone. Raises as `logits`."""
        ...
