"""Token ids to text, one at a time, in Gemma's scheme: whole pieces with U+2581 for a space, and single bytes."""

from __future__ import annotations

import codecs
from collections.abc import Callable

_SPACE = "\u2581"


class Detokenizer:
    """Incremental decoding that holds back bytes until they make a character.

    `piece(id)` returns a token's spelling in the vocabulary. Nothing invalid ever shows up except
    where the tokens themselves spell invalid UTF-8: then U+FFFD stands for the broken bytes, as in any decoder.
    """

    def __init__(self, piece: Callable[[int], str | None]) -> None:
        self._piece = piece
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that `token` completes; empty while it only starts a character."""
        piece = self._piece(token)
        if piece is None:  # an id beyond the vocabulary has no spelling
            return self.flush()
        byte = _single_byte(piece)
        if byte is not None:
            return self._bytes.decode(byte)
        return self.flush() + piece.replace(_SPACE, " ")

    def flush(self) -> str:
        """What is still held back; a character that was never completed becomes U+FFFD."""
        return self._bytes.decode(b"", final=True)


def _single_byte(piece: str) -> bytes | None:
    """The byte of a byte token like `<0x0A>`."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            return None
    return None
