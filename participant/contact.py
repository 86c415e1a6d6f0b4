"""How this site stands with its coordinator: in touch, or out of reach since when and why; and whether clocks agree.

Says each fact once: a coordinator that is away for a night is a few lines in the log and not a thousand. The latest
state is also a file, for `accord-participant status`. Dials nobody: why a call has failed is looked up by `explain`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from common import jsonform
from common.clock import Clock
from common.durable import write_durably
from common.errors import AccordError, ClockWrong, InvalidArgument, Unavailable
from common.log import get_logger
from participant.network import clocks

CONTACT_FILE: Final = "contact.json"
# A blip is tried again without a word more; a look at the way takes seconds.
TRIES_BEFORE_LOOKING: Final = 2
LOOK_AGAIN: Final = timedelta(minutes=2)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ContactState:
    """What was last said. reason, message: "" while in touch; clock: "" while both clocks agree."""

    since: str
    reason: str = ""
    message: str = ""
    clock: str = ""


class Contact:
    """Told by the daemon of every answer and of every failure. For one thread."""

    def __init__(
        self,
        clock: Clock,
        *,
        explain: Callable[[AccordError], AccordError] = lambda error: error,
        folder: Path | None = None,
        on_clock: Callable[[timedelta], None] = lambda skew: None,
    ) -> None:
        """explain: why a call has failed, at length. folder: where the state is kept. on_clock: hears every skew."""
        self._clock = clock
        self._explain = explain
        self._file = folder / CONTACT_FILE if folder is not None else None
        self._on_clock = on_clock
        self._tries = 0
        self._looked_at: datetime | None = None
        self._said: AccordError | None = None
        self._lost_at: datetime | None = None
        self._clock_wrong: ClockWrong | None = None
        self._written: ContactState | None = None

    @property
    def clock_wrong(self) -> ClockWrong | None:
        """The latest answer's, while the clocks are too far apart."""
        return self._clock_wrong

    def answered(self, server_time: datetime | None, *, asked: datetime) -> None:
        """The coordinator has answered a call that was made at `asked`."""
        now = self._clock.now()
        if self._lost_at is not None and self._said is not None:
            log.info("coordinator_reached_again", seconds=round((now - self._lost_at).total_seconds()))
        self._tries, self._looked_at, self._said, self._lost_at = 0, None, None, None
        if server_time is not None:
            self._compare(clocks.difference(server_time, asked=asked, answered=now))
        self._write(now)

    def failed(self, error: AccordError) -> AccordError:
        """A call has failed; returns why, as well as it is known by now."""
        now = self._clock.now()
        self._tries += 1
        self._lost_at = self._lost_at or now
        if self._said is not None and type(error) is Unavailable and not self._is_due(now):
            return self._said
        if type(error) is Unavailable and self._is_due(now):
            error = self._explain(error)
            self._looked_at = self._clock.now()
        if self._said is None or (self._said.reason, self._said.message) != (error.reason, error.message):
            log.warning("coordinator_unreachable", reason=error.reason, message=error.message, tries=self._tries)
        self._said = error
        self._write(now)
        return error

    def _is_due(self, now: datetime) -> bool:
        if self._tries < TRIES_BEFORE_LOOKING:
            return False
        return self._looked_at is None or not timedelta() <= now - self._looked_at < LOOK_AGAIN

    def _compare(self, skew: timedelta) -> None:
        self._on_clock(skew)
        wrong, was = clocks.wrong(skew), self._clock_wrong
        if wrong is not None and was is None:
            log.error("clock_wrong", reason=wrong.reason, message=wrong.message, seconds=skew.total_seconds())
        if wrong is None and was is not None:
            log.info("clock_right_again")
        # The figure moves by the length of a poll; what was said first is said on.
        self._clock_wrong = wrong and (was or wrong)

    def _write(self, now: datetime) -> None:
        said, wrong = self._said, self._clock_wrong
        state = ContactState(
            since=(self._lost_at or now).isoformat(),
            reason=said.reason if said else "",
            message=said.message if said else "",
            clock=wrong.message if wrong else "",
        )
        before = self._written
        is_same = before is not None and (before.reason, before.message, before.clock) == (
            state.reason,
            state.message,
            state.clock,
        )
        if self._file is None or is_same:
            return
        self._written = state
        try:
            write_durably(self._file, jsonform.encode(state, ContactState).encode())
        except OSError as error:
            log.warning("contact_not_kept", error=str(error))


def read_contact(folder: Path) -> ContactState | None:
    """What a daemon last wrote there; None if none has, or if the file is of another version."""
    try:
        content = (folder / CONTACT_FILE).read_bytes()
        return jsonform.decode(content, ContactState, what=CONTACT_FILE)
    except (OSError, InvalidArgument):
        return None
