"""This machine's clock against the coordinator's, as far as the time on the way allows. Reads no clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from common.errors import ClockWrong

# The CA dates certificates back by five minutes, and a round's deadline may be as far off: what is further breaks
# handshakes, and rounds are declined.
MOST_SKEW: Final = timedelta(minutes=5)
NOTED_SKEW: Final = timedelta(seconds=30)

ACTION: Final = "set the clock and keep it right: timedatectl set-ntp true, or your own time server"


def difference(server_time: datetime, *, asked: datetime, answered: datetime) -> timedelta:
    """The coordinator's time less this machine's; zero where the two moments of the call leave it open."""
    early, late = server_time - asked, server_time - answered
    # The coordinator looked at its clock between the two: only what lies outside is a difference.
    return early if early < timedelta() else late if late > timedelta() else timedelta()


def told(skew: timedelta) -> str:
    """The difference in a person's words."""
    seconds = abs(skew.total_seconds())
    return f"this machine's clock is {seconds:.0f} s {'behind' if skew > timedelta() else 'ahead of'} the coordinator's"


def wrong(skew: timedelta) -> ClockWrong | None:
    """The error that a difference is; None for one that does no harm."""
    if abs(skew) <= MOST_SKEW:
        return None
    return ClockWrong(
        f"{told(skew)}; {ACTION}. If it is right here, tell the federation's operator",
        metadata={"seconds": f"{skew.total_seconds():.0f}"},
    )


def parse_time(text: str | None) -> datetime | None:
    """The time that the coordinator tells beside its answers; None for one that does not, or tells something else."""
    try:
        time = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return time.astimezone(UTC) if time is not None and time.tzinfo is not None else None
