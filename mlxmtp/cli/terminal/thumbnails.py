"""Small pictures in the terminal, by the protocols of kitty and iTerm2, which take a file in base64."""

import base64
from collections.abc import Iterator

from mlxmtp.cli.terminal.output import Output
from mlxmtp.environment import Pictures

_ROWS, _COLUMNS = 6, 40
_PIECE = 4096  # characters of base64 in one of kitty's sequences


def draw_thumbnail(out: Output, png: bytes, width: int, height: int) -> None:
    """Draw a picture of `width` x `height` pixels where the terminal draws any."""
    out.draw(thumbnail(png, width, height, out.pictures))


def thumbnail(png: bytes, width: int, height: int, protocol: Pictures) -> str:
    """Return what draws a picture of `width` x `height` pixels and goes to the next line; nothing without `protocol`.

    It is as high as six rows of text, or as wide as forty columns.
    """
    wide = 2 * _ROWS * width > _COLUMNS * height  # a cell is about twice as high as wide
    data = base64.b64encode(png).decode()
    if protocol == "kitty":
        return "".join(_kitty(data, f"c={_COLUMNS}" if wide else f"r={_ROWS}")) + "\n"
    if protocol == "iterm2":
        size = f"width={_COLUMNS}" if wide else f"height={_ROWS}"
        return f"\x1b]1337;File=inline=1;size={len(png)};{size};preserveAspectRatio=1:{data}\x07\n"
    return ""


def _kitty(data: str, size: str) -> Iterator[str]:
    """Yield sequences that transmit a PNG (f=100) and show it (a=T), without an answer from the terminal (q=2)."""
    for start in range(0, len(data), _PIECE):
        first = f"a=T,f=100,q=2,{size}," if not start else ""
        more = int(start + _PIECE < len(data))
        yield f"\x1b_G{first}m={more};{data[start : start + _PIECE]}\x1b\\"
