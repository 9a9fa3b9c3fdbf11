"""Versions of this package and of those it stands on."""

from functools import cache


@cache
def installed_version(package: str = "mlxmtp", missing: str = "0+source") -> str:
    """Return the version of an installed package; `missing` for one that is not, such as our own source tree."""
    # Read on demand: importlib.metadata takes longer to import than all of this package's start.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return missing
