"""The picture that a person has copied, by the programs that systems have for that. No terminal can hand it over."""

import subprocess
import sys
from collections.abc import Sequence
from shutil import which
from urllib.parse import unquote

from mlxmtp.environment import over_ssh
from mlxmtp.errors import UsageError
from mlxmtp.media.source import HEAD, media_type_of

_SECONDS = 10.0
_WAYLAND = ("wl-paste", "--no-newline", "--type")
_X11 = ("xclip", "-selection", "clipboard", "-o", "-t")
_TYPES = ("text/uri-list", "image/png", "image/jpeg", "image/tiff", "image/bmp")  # a copied file before its icon
_FILE = "POSIX path of (the clipboard as «class furl»)"
_PNG = "the clipboard as «class PNGf»"


def copied_picture() -> bytes | str:
    """Return the bytes of the picture in the clipboard, or the path of a file that was copied there.

    Raises UsageError if there is none, or no program that reads it.
    """
    found = _of_mac() if sys.platform == "darwin" else _of_desktop()
    if isinstance(found, str) or media_type_of(found[:HEAD]) is not None:
        return found
    if over_ssh():
        raise UsageError("The clipboard is on the machine where you sit: copy the image here as a file, and give it.")
    raise UsageError("There is no image in the clipboard: copy one, or give the path of a file.")


def _of_mac() -> bytes | str:
    if path := _output(("osascript", "-e", _FILE)).decode("utf-8", "replace").strip():
        return path
    if which("pngpaste") and (data := _output(("pngpaste", "-"))):
        return data
    said = _output(("osascript", "-e", _PNG)).strip()  # «data PNGf89504E47…»
    digits = said.partition(b"PNGf")[2].partition(b"\xc2\xbb")[0]
    try:
        return bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        return b""


def _of_desktop() -> bytes | str:
    """Return what Wayland's program or X11's gives; both are asked, as a desktop may have either."""
    readers = [command for command in (_WAYLAND, _X11) if which(command[0])]
    if not readers:
        if over_ssh():
            return b""
        raise UsageError(
            "No program here reads the clipboard: install wl-clipboard (Wayland) or xclip (X11), or give the path of a "
            "file."
        )
    for command in readers:
        for kind in _TYPES:
            data = _output((*command, kind))
            if kind == "text/uri-list":
                lines = map(str.strip, data.decode("utf-8", "replace").split("\n"))
                if (first := next((line for line in lines if line.startswith("file://")), None)) is not None:
                    return unquote(first.removeprefix("file://"))
            elif media_type_of(data[:HEAD]) is not None:
                return data
    return b""


def _output(command: Sequence[str]) -> bytes:
    """Return what a program writes; nothing if it fails or takes too long."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return b"" if done.returncode else done.stdout
