"""Who is holding a round up: asked of a real coordinator in every phase, with one site whose line is cut."""

from __future__ import annotations

import pytest

from common.errors import NotFound
from tests.rpc.federation import Federation


def awaited(federation: Federation) -> list[tuple[str, str]]:
    rows = federation.admin.explain_run("runs/run")["awaited"]
    return [(row["participant"].removeprefix("participants/"), row["step"]) for row in rows]


@pytest.mark.parametrize(
    ("before", "state", "step"),
    [
        ("assignments", "forming", "ask for work"),
        ("report_prepared", "training", "train"),
        ("upload", "collecting", "upload"),
        ("evidence", "unmasking", "reveal shares"),
    ],
)
def test_the_one_that_is_away_is_named_with_what_it_should_do(
    federation: Federation, before: str, state: str, step: str
) -> None:
    federation.add_sites(4)
    federation.create_run(is_started=False)
    federation.join_all()
    for name in ("site-3", "site-2") if before == "evidence" else ("site-3",):  # three of four shares open a sum
        federation.sites[name].line.cut(before=before)
    federation.start_run()
    for _ in range(12):
        federation.turn()
    assert federation.round(1)["state"] == state

    found = federation.admin.explain_run("runs/run")

    assert ("site-3", step) in awaited(federation)
    mine = [row for row in found["awaited"] if row["participant"] == "participants/site-3" and row["step"] == step]
    assert mine[0]["since_time"] == found["phase_start_time"]
    assert mine[0]["last_seen_time"] is not None
    assert (found["round"], found["round_state"]) == ("runs/run/rounds/1", state)
    assert mine[0]["reason"] == "WORKING"
    federation.clock.advance(minutes=5)
    late = [row for row in federation.admin.explain_run("runs/run")["awaited"] if row["step"] == step]
    assert [row["reason"] for row in late if row["participant"] == "participants/site-3"] == ["SILENT"]
    assert "accord-participant check" in late[-1]["advice"]


def test_before_the_start_those_are_named_who_have_not_decided(federation: Federation) -> None:
    federation.add_sites(3)
    federation.create_run(is_started=False)
    federation.turn(["site-0"])
    assert awaited(federation) == [("site-1", "join"), ("site-2", "join")]
    federation.sites["site-1"].client.decline_run("run", reason="POLICY_REFUSAL", message="not tonight")
    found = federation.admin.explain_run("runs/run")
    assert [row["participant"] for row in found["awaited"]] == ["participants/site-2"]
    (out,) = found["out"]
    assert (out["participant"], out["reason"], out["message"]) == (
        "participants/site-1",
        "POLICY_REFUSAL",
        "not tonight",
    )


def test_nobody_is_named_once_the_run_is_over_and_a_run_that_is_not_there_is_said_to_be_missing(
    federation: Federation,
) -> None:
    federation.add_sites(3)
    federation.create_run(rounds=1)
    federation.turn_until(lambda: federation.state() == "succeeded")
    found = federation.admin.explain_run("runs/run")
    assert (found["run_state"], found["awaited"], found["out"]) == ("succeeded", [], [])
    with pytest.raises(NotFound, match="nowhere"):
        federation.admin.explain_run("runs/nowhere")
