"""Bytes, counts, durations, misspelt names and columns of text, as people read them."""

from collections.abc import Iterable


def format_bytes(size: int) -> str:
    """Return bytes as `6.7 GB`."""
    if size >= 1e8:
        return f"{size / 1e9:.1f} GB"
    if size >= 1e6:
        return f"{size / 1e6:.0f} MB"
    return f"{size / 1e3:.0f} kB" if size >= 1e3 else f"{size} B"


def format_count(parameters: int) -> str:
    """Return a number of parameters as `4.6B`, `20M`, `43k`, `66`."""
    if parameters >= 1e9:
        return f"{parameters / 1e9:.1f}B"
    if parameters >= 1e6:
        return f"{parameters / 1e6:.1f}M" if parameters < 1e7 else f"{parameters / 1e6:.0f}M"
    return f"{parameters / 1e3:.0f}k" if parameters >= 1e3 else str(parameters)


def format_duration(seconds: float) -> str:
    """Return a duration as a clock shows it: `1:05`, `2:00:09`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def ago(then: float, now: float) -> str:
    """Return the time between two moments as `3 days ago`."""
    seconds = max(0, int(now - then))
    for size, unit in ((86400 * 365, "year"), (86400 * 30, "month"), (86400, "day"), (3600, "hour"), (60, "minute")):
        count = seconds // size
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known word that a misspelt one most likely means, None if none is near."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def text_width(text: str) -> int:
    """Return the columns that text takes on a terminal, by wcwidth as prompt_toolkit; control characters take none."""
    if text.isascii() and text.isprintable():
        return len(text)
    from wcwidth import wcswidth, wcwidth

    columns = wcswidth(text)
    return columns if columns >= 0 else sum(max(0, wcwidth(one)) for one in text)
