"""The version of the installed package."""

from importlib import metadata


def version() -> str:
    """As pip names it."""
    try:
        return metadata.version("c2d-isr")
    except metadata.PackageNotFoundError:
        return "from source, not installed"
