"""Which mlxmtp this is."""

from __future__ import annotations


def installed_version() -> str:
    """The version of the installed package; `0+source` for a source tree that is not installed."""
    # Read on demand: importlib.metadata takes longer to import than all of this package's start.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mlxmtp")
    except PackageNotFoundError:
        return "0+source"
