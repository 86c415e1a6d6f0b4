"""The version of the installed distribution, as it is shown to operators and sent to the other side."""

from __future__ import annotations

from importlib import metadata
from typing import Final

DISTRIBUTION: Final = "accord"
UNINSTALLED: Final = "0+unknown"  # a valid version (PEP 440) that sorts before every release


def software_version() -> str:
    """Version of the distribution; `0+unknown` in a source tree that was never installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return UNINSTALLED
