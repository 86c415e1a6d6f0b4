"""Fields that requests of several admin calls share, checked in one place."""

from __future__ import annotations

from typing import Final

from common.errors import InvalidArgument

DEFAULT_PAGE: Final = 50
MOST_IN_A_PAGE: Final = 500
MOST_REASON: Final = 1000


def page_size(wanted: int) -> int:
    """Rows of a page: what is asked for, within bounds; 0 takes the default."""
    return min(wanted or DEFAULT_PAGE, MOST_IN_A_PAGE)


def reason(text: str) -> str:
    """A reason as it is kept. Raises InvalidArgument if it is too long."""
    if len(text) > MOST_REASON:
        raise InvalidArgument(f"reason: at most {MOST_REASON} characters")
    return text
