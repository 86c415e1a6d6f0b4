"""All rounds of a run, for curves: read once when they are over, because then they never change."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from common.rpc.identity import Caller
from coordinator.web.reads import Plain, Reads

# A first visit reads all; later ones what is new, which is most often the open round.
PAGE: Final = 200
NEW_PAGE: Final = 10
# Of very long runs the newest rounds are shown.
MOST_ROUNDS: Final = 2000
# More than one page shows, or each look would read all of them anew.
MOST_RUNS: Final = 32

_OVER: Final = ("succeeded", "failed", "cancelled")


class RoundHistory:
    """Remembers the ended rounds of the runs that were looked at last. Belongs to one event loop."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, dict[int, Plain]] = OrderedDict()

    async def of(self, reads: Reads, caller: Caller, run: str) -> tuple[Plain, ...]:
        """A run's rounds without the names in them, oldest first, at most MOST_ROUNDS."""
        known = self._known.pop(run, {})
        size = NEW_PAGE if known else PAGE
        newest: dict[int, Plain] = {}
        token = ""
        while len(newest) < MOST_ROUNDS:
            answer = await reads.rounds(caller, run, size=size, token=token)
            rows: list[Plain] = answer["rounds"]
            newest |= {row["number"]: row for row in rows}
            token, size = answer["next_page_token"], PAGE
            # What is older than a round that is known is known, too.
            if not token or any(row["number"] in known for row in rows):
                break
        found = {**known, **newest}
        kept = sorted(found)[-MOST_ROUNDS:]
        self._known[run] = {number: found[number] for number in kept if found[number]["state"] in _OVER}
        while len(self._known) > MOST_RUNS:
            self._known.popitem(last=False)
        return tuple(found[number] for number in kept)
