"""The built-in model's tokenizer, and its tokens as a grammar sees them, for tests of forms and of calls."""

from functools import cache
from pathlib import Path

from mlxmtp.engine.constraint import TokenTable
from mlxmtp.engine.tokenizer import Tokenizer

POCKET = Path(__file__).parents[1] / "assets" / "pocket" / "target"
STOP = (1, 50, 106)


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(POCKET)


@cache
def table() -> TokenTable:
    return TokenTable(tokenizer(), 4096, STOP)
