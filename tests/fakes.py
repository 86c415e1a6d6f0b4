"""Stand-ins that tests share; each does what the real part does, except that the test is in charge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

START_OF_TIME = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


class FakeClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: datetime = START_OF_TIME) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now

    def advance(self, step: timedelta | None = None, **parts: float) -> datetime:
        """Move on by a timedelta or by its parts: `clock.advance(hours=6)`."""
        self._now += (step or timedelta()) + timedelta(**parts)
        return self._now
