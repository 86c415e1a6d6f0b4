"""How much of each adapter a site uses: one scale after the other is tried, and what lowers the loss is kept. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

Scales = tuple[float, ...]

GRID: Final = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
MOST_PASSES: Final = 3


def search_scales(
    loss_at: Callable[[Scales], float], starts: Sequence[Scales], *, grid: Sequence[float] = GRID
) -> tuple[Scales, float]:
    """The best scales found from the best start by coordinate search, and their loss.

    loss_at: asked once for any scales. starts: all of one length; the result is no worse than any of them. Ends after
    a pass over all coordinates that changes nothing, or after MOST_PASSES.
    """
    known: dict[Scales, float] = {}

    def loss(scales: Scales) -> float:
        if scales not in known:
            known[scales] = loss_at(scales)
        return known[scales]

    best = min(starts, key=loss)
    for _ in range(MOST_PASSES):
        before = best
        for place in range(len(best)):
            tried = ((*best[:place], value, *best[place + 1 :]) for value in grid)
            best = min((best, *tried), key=loss)
        if best == before:
            break
    return best, loss(best)
