"""Rounds that are over are read once."""

from __future__ import annotations

from typing import Any

from common.identifiers import Role
from common.rpc.identity import Caller
from coordinator.web.history import MOST_ROUNDS, MOST_RUNS, RoundHistory

CALLER = Caller(Role.VIEWER, "vera")


class Listed:
    """A listing of rounds, newest first, that counts what is read of it."""

    def __init__(self, rounds: int) -> None:
        self.states = dict.fromkeys(range(1, rounds + 1), "succeeded")
        self.read = 0

    async def rounds(self, caller: Caller, run: str, *, size: int, token: str = "") -> dict[str, Any]:
        numbers = [number for number in sorted(self.states, reverse=True) if not token or number < int(token)]
        shown = numbers[:size]
        self.read += len(shown)
        return {
            "rounds": [{"number": number, "state": self.states[number]} for number in shown],
            "next_page_token": str(shown[-1]) if len(numbers) > size else "",
        }


async def seen(history: RoundHistory, listed: Listed, run: str = "runs/a") -> list[tuple[int, str]]:
    rows = await history.of(listed, CALLER, run)  # type: ignore[arg-type]
    return [(row["number"], row["state"]) for row in rows]


async def test_all_rounds_come_oldest_first_and_those_that_are_over_are_read_once():
    history, listed = RoundHistory(), Listed(450)
    listed.states[450] = "training"
    assert [number for number, _ in await seen(history, listed)] == list(range(1, 451))
    assert listed.read == 450
    listed.states |= {450: "failed", 451: "forming"}
    assert (await seen(history, listed))[-2:] == [(450, "failed"), (451, "forming")]
    assert len(await seen(history, listed)) == 451
    assert listed.read == 450 + 2 * 10


async def test_more_new_rounds_than_a_page_leave_no_gap():
    history, listed = RoundHistory(), Listed(5)
    await seen(history, listed)
    listed.states |= dict.fromkeys(range(6, 60), "succeeded")
    assert [number for number, _ in await seen(history, listed)] == list(range(1, 60))


async def test_of_endless_runs_and_of_many_runs_the_newest_are_kept():
    history, listed = RoundHistory(), Listed(MOST_ROUNDS + 300)
    found = await seen(history, listed)
    assert len(found) == MOST_ROUNDS
    assert found[-1][0] == MOST_ROUNDS + 300
    for number in range(MOST_RUNS):
        await seen(history, Listed(1), f"runs/{number}")
    before = listed.read
    await seen(history, listed)
    assert listed.read > before + 100, "it was forgotten, and is read anew"
